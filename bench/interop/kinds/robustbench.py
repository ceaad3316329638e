"""robustbench:NAME: a model of RobustBench's zoo, or a checkpoint exported to its layout."""

from importlib import metadata
from pathlib import Path

from bench.errors import BenchError
from bench.interop.kinds import Brought, Order
from bench.interop.zoo import Shelf, load_zoo_model

TAKES = frozenset({"threat_model", "model_dir"})


def bring(order: Order) -> Brought:
    """The model; RobustBench has another one of a name for each dataset and threat model.

    Raises:
        BenchError: there is no such model, or its file is missing and cannot be downloaded, or cannot be used.
    """
    if order.dataset is None:
        raise BenchError(f"say which model robustbench:{order.name} is: --dataset cifar10 or cifar100.")
    shelf = Shelf(order.dataset, order.threat_model or "Linf", order.model_dir or Path("models"))
    model = load_zoo_model(order.name, shelf)
    installed = metadata.version("robustbench")
    return Brought(
        module=model,
        name=order.name,
        source=f"robustbench:{order.name}",
        file=shelf.file(order.name).name,
        facts={"zoo": {"threat_model": shelf.threat_model, "dataset": shelf.dataset, "robustbench": installed}},
        dataset=shelf.dataset,
    )
