"""Programs that train with a library, and go on from an average in the form of its own checkpoints.

Each is run by the Python that has the library, twice: `python -m tests.libraries.resume.NAME train FOLDER` fills
FOLDER/run by the library's own saving, and `... resume FOLDER` loads FOLDER/averaged by its own loader, compares it
with the mean of what it loads of the run, and trains one step more. The library calls none of ema-cli.
"""

from tests.trainers.ranks import let_torchvision_load

let_torchvision_load()  # which several of them import
