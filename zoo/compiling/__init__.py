"""Reports on torch.compile: graphs, graph breaks, recompiles and seconds."""

from zoo.compiling.check import check_compilation
from zoo.compiling.report import CompileReport, watch_anew

__all__ = ["CompileReport", "check_compilation", "watch_anew"]
