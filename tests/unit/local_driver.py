"""`comd run` with the fake trainer, as a process of its own: local_driver.py FILE WORK_DIR."""

import sys
from pathlib import Path

from comd_api.exit_codes import ComdError
from comd_operator.cli.run import run_command

FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))

if __name__ == "__main__":
    try:
        sys.exit(
            run_command(Path(sys.argv[1]), work_dir=Path(sys.argv[2]), storage=None, quiet=False, command=FAKE_TRAINER)
        )
    except ComdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
