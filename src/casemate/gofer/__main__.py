"""``python -P -m casemate.gofer``: see :func:`casemate.gofer.launch.main`."""

from casemate.programs import begin

begin()

from casemate.gofer.launch import main  # noqa: E402 - only now

main()
