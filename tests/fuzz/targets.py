"""All that is attacked."""

import files
import paths
import prompts
import texts

TARGETS = (*files.TARGETS, *texts.TARGETS, *paths.TARGETS, *prompts.TARGETS)
