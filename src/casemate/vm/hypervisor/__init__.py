"""Virtual machine monitors behind one small interface.

:mod:`.base` is the interface; :mod:`.qemu` and :mod:`.fake` each drive one.

Nothing outside this package knows a monitor's name or its options; a driver says what it can do
(:meth:`~casemate.vm.hypervisor.base.Hypervisor.probe`).
"""
