"""What a chain takes, before anything runs: memory of a process by part, operations and time of a step."""

from .plan import Resources, StagePlan, plan
from .report import as_dict, as_text

__all__ = ["Resources", "StagePlan", "as_dict", "as_text", "plan"]
