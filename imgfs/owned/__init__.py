"""Directories and files that could be another user's or process's: who owns them, and who holds them.

opening     opens one only if it is this user's own
held        makes one that is held from its first moment, and sweeps those that no process holds
"""

from imgfs.owned.held import Held as Held
from imgfs.owned.held import new_directory as new_directory
from imgfs.owned.held import new_file as new_file
from imgfs.owned.held import sweep as sweep
from imgfs.owned.opening import check_owned as check_owned
from imgfs.owned.opening import open_owned_directory as open_owned_directory
from imgfs.owned.opening import open_owned_file as open_owned_file
from imgfs.owned.opening import random_name as random_name
from imgfs.owned.opening import read_owned_file as read_owned_file
