"""Every algorithm again, slow and obvious: the numbers that the library's functions are held against."""

import math

import numpy as np
