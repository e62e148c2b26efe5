"""What the fork server imports before it forks: everything a phase would otherwise import first. Touches no device.

`torch._dynamo`, inductor and DeepSpeed's muon optimizer are here because AdamW's constructor and `deepspeed.initialize` pull them
in: ten seconds in every phase without this.
"""

from comd_trainer.engine.preload import import_everything

import_everything()
