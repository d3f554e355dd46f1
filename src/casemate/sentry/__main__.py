"""``python -m casemate.sentry``: see :mod:`casemate.sentry.main`."""

from casemate.programs import begin, leave

begin()

from casemate.sentry.main import main  # noqa: E402 - only now

leave(main())
