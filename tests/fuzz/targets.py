"""All that is attacked, in the order of the table in docs/reliability.md."""

import directed_runs
import paths
import pickles
import prompts
import sessions
import texts
import tunings
import weights

MODULES = (sessions, weights, pickles, tunings, texts, directed_runs, paths, prompts)
TARGETS = tuple(target for module in MODULES for target in module.TARGETS)
