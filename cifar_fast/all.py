"The whole library: `from cifar_fast.all import *`"
from cifar_fast.core import *
from cifar_fast.shapes import *
from cifar_fast.data import *
from cifar_fast.augment import *
from cifar_fast.loaders import *
from cifar_fast.models import *
from cifar_fast.summary import *
from cifar_fast.schedule import *
from cifar_fast.learner import *
from cifar_fast.runs import *
from cifar_fast.interpret import *
from cifar_fast.recipes import *
from cifar_fast.cli import *
