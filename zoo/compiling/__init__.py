"""Reports on torch.compile: graphs, graph breaks, recompiles and seconds."""

from zoo.compiling.check import check_compilation
from zoo.compiling.report import CompileReport, CompileWatch

__all__ = ["CompileReport", "CompileWatch", "check_compilation"]
