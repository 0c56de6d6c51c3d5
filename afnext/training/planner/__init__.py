"""What a chain takes, before anything runs: memory of a process by part, operations and time of a step."""

from .made import Made, made
from .plan import Resources, StagePlan, plan
from .report import as_dict, as_text

__all__ = ["Made", "Resources", "StagePlan", "as_dict", "as_text", "made", "plan"]
