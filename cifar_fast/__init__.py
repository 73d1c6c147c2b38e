__version__ = "0.1.0"

import warnings
warnings.filterwarnings('ignore', '`torch.jit.script`', FutureWarning)  # what fastai 2.8.7 draws from torch 2.15 at import
