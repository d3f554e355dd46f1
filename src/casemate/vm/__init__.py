"""The vm wall: everything about the virtual machine around a sandbox that does not belong to one hypervisor."""
