"""The vm wall: virtual machines, their guests and the sandboxes made of them."""
