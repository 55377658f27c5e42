"""What every command here imports first: the clone comes first on the path.

So its packages win over whatever else is called `edm` or `experiments`, installed or not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linear_structure.system.errors import leave_at_once

leave_at_once()
