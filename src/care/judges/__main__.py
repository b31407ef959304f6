"""`python -m care.judges`: agreement of the refusal judges with hand labels, as JSON."""

import json
import sys

from care.judges.agreement import agreement

if __name__ == "__main__":
    json.dump(agreement(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
