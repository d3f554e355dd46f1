"""Which machines one template serves, and what that costs the host beside their memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.config import TEMPLATE_MIB, Config
from casemate.vm import template
from casemate.vm.hypervisor import base

TCG = base.Accelerator.TCG


@given(st.integers(min_value=0, max_value=1 << 20))
def test_every_amount_has_the_least_class_that_holds_it(memory: int) -> None:
    kind = template.class_of(TCG, memory, 1)
    if kind is None:
        assert memory < TEMPLATE_MIB or memory > template.largest_mib()
        return
    assert TEMPLATE_MIB <= memory <= TEMPLATE_MIB + kind.growth_mib
    assert not any(memory <= TEMPLATE_MIB + growth < TEMPLATE_MIB + kind.growth_mib for growth in template.GROWTHS_MIB)


def test_the_usual_machine_has_one() -> None:
    config = Config()
    assert template.class_of(TCG, config.memory, config.vcpus) == template.Class(TCG, 4096, 1)
    assert template.class_of(TCG, config.memory_minimum, config.vcpus) == template.Class(TCG, 4096, 1)


@pytest.mark.parametrize(
    ("config", "used"),
    [(Config(), True), (replace(Config(), template="off"), False), (replace(Config(), transport="vsock"), False)],
)
def test_what_a_sandbox_may_take_beside_its_memory(config: Config, used: bool) -> None:
    assert config.templates == used
    assert config.overhead == config.vmm_overhead + (TEMPLATE_MIB if used else 0)
