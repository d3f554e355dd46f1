"""Names for containers that nobody named."""

from __future__ import annotations

KINDS = """
    amber brisk calm clear cosy crisp deep dry early even fair fine firm fleet fond free fresh glad good grand green
    hale high keen kind late light live long loud mild neat new nimble old pale plain plump prime proud pure quick
    quiet rare ready rich ripe round sharp short shy slim slow small smooth soft sound spare spry steady still stout
    strong sunny sure sweet swift tall tame thin tidy tiny true vast warm wide wild wise young
    """
THINGS = """
    acorn alder anchor anvil apple arch ash aspen badger barge beacon beech birch bison brook cairn canal cedar cliff
    clover cove crane creek dale delta dove dune eagle elm ember falcon fern finch fjord flint forge fox garnet glade
    harbor hawk hazel heron hill holly ibis inlet iris ivy jetty kelp lagoon larch lark ledge lichen lynx maple marsh
    meadow mesa mill moss oak orchid osprey otter owl pebble pine plover pond poplar quarry quartz raven reed ridge
    robin rowan sable sage spruce stone stork summit swan thistle thrush tide tern vale willow wren yew
    """


def make_up(identifier: str, attempt: int) -> str:
    """A name such as ``keen-otter``, drawn from the id; later attempts have a number that makes clashes rare."""
    kinds, things = KINDS.split(), THINGS.split()
    number = int(identifier[:16], 16) + attempt
    name = f"{kinds[number % len(kinds)]}-{things[number // len(kinds) % len(things)]}"
    return name if attempt == 0 else f"{name}-{int(identifier[16:24], 16) % 10_000 + attempt}"
