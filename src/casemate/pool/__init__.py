"""The pool: machines that were made before somebody asks for one.

``casemate pool`` (:mod:`casemate.pool.daemon`) keeps a number of keepers, its *members*. Each has a machine that is
restored and warm (:mod:`casemate.vm.waiting`) and waits for its container. A door asks for one by one message
(:mod:`casemate.pool.client`) and gets the member's connection, on which it says what it would say to a keeper that it
has started itself. From then on the member is that: the pool has nothing to do with it any more.
"""
