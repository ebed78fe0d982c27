"""The mounts of this machine: how to find one, ask its daemon, mount in a place, and end it.

Nothing here waits for a daemon without an end: it may be stopped, or wait itself.
"""

from imgfs.mounts.asking import STATUS_XATTR as STATUS_XATTR
from imgfs.mounts.asking import Silent as Silent
from imgfs.mounts.asking import decode_status as decode_status
from imgfs.mounts.asking import encode_status as encode_status
from imgfs.mounts.asking import read_status as read_status
from imgfs.mounts.ending import unmount as unmount
from imgfs.mounts.place import check_mountable as check_mountable
from imgfs.mounts.table import FILESYSTEM as FILESYSTEM
from imgfs.mounts.table import REFERENCE as REFERENCE
from imgfs.mounts.table import RUNTIME as RUNTIME
from imgfs.mounts.table import STATUS_SOCKET as STATUS_SOCKET
from imgfs.mounts.table import Mount as Mount
from imgfs.mounts.table import mount_at as mount_at
from imgfs.mounts.table import mounts as mounts
from imgfs.mounts.table import our_mount_at as our_mount_at
from imgfs.mounts.table import our_mounts as our_mounts
