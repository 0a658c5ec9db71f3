"""The compile report counts what the compiler did, and its errors are one line."""

import pytest
import torch

from zoo.compiling import CompileReport, watch_anew
from zoo.compiling.report import naming_compile_errors
from zoo.errors import TrainingError


def double(x):
    return x * 2


def test_graphs_beyond_the_expected_are_recompiles():
    watch = watch_anew()
    compiled = torch.compile(double, backend="eager", dynamic=False)
    for size in (2, 3, 3, 4):
        compiled(torch.ones(size))
    report = watch.report(expected_graphs=1)
    assert (report.graphs, report.graph_breaks, report.recompiles) == (3, 0, 2)
    assert report.seconds > 0


def test_every_watch_begins_anew():
    for _ in range(10):  # more often than the compiler would compile one function anew
        watch = watch_anew()
        torch.compile(double, backend="eager", fullgraph=True)(torch.ones(2))
        report = watch.report(expected_graphs=1)
        assert (report.graphs, report.recompiles) == (1, 0)


def test_graph_breaks_are_counted():
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x + 2

    watch = watch_anew()
    torch.compile(broken, backend="eager")(torch.ones(2))
    assert watch.report(expected_graphs=2) == CompileReport(2, 1, 0, watch.report(2).seconds)


def test_reports_add_up():
    assert CompileReport(2, 1, 0, 1.5) + CompileReport(3, 0, 1, 2.0) == CompileReport(5, 1, 1, 3.5)


def test_a_model_that_does_not_compile_whole_is_one_line():
    def broken(x):
        torch._dynamo.graph_break()
        return x

    line = r"^torch\.compile: .*; training\.compile=false trains"
    with pytest.raises(TrainingError, match=line) as caught, naming_compile_errors():
        torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(2))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_backend_that_fails_is_one_line():
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler")

    with pytest.raises(TrainingError, match=r"no C\+\+ compiler"), naming_compile_errors():
        torch.compile(double, backend=backend, fullgraph=True)(torch.ones(2))
