"""What in the store belongs to what, what of it can go, and whether it is what it was."""

from imgfs.inventory.check import Fault as Fault
from imgfs.inventory.check import check as check
from imgfs.inventory.needs import Needs as Needs
from imgfs.inventory.needs import layers_in_use as layers_in_use
from imgfs.inventory.needs import needs_of as needs_of
from imgfs.inventory.needs import refuse_if_used as refuse_if_used
from imgfs.inventory.needs import sweep as sweep
from imgfs.inventory.prune import Prunable as Prunable
from imgfs.inventory.prune import evict as evict
from imgfs.inventory.prune import prunable as prunable
from imgfs.inventory.prune import prune as prune
