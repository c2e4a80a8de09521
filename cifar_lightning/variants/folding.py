"""Folding BatchNorms into convolutions."""

from collections import Counter
from contextlib import suppress
from copy import deepcopy

from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from cifar_lightning.errors import first_line_of
from cifar_lightning.variants.context import Unsupported


class _Tracer(fx.Tracer):
    """Keeps the layers that folding knows in one piece, subclasses of other packages, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, nn.Conv2d | nn.BatchNorm2d)
        return known or super().is_leaf_module(m, module_qualified_name)


def folded_where_traceable(network: nn.Module) -> nn.Module:
    """Fold BatchNorms for an exporter, which may trace what can't be traced here.

    Layers that overwrite what they are given don't do so in what is returned: they mean the same,
    and ``torch.export`` takes nearly twice as long for a network that is full of them.
    """
    network = deepcopy(network)
    for layer in network.modules():
        if "inplace" in vars(layer):
            vars(layer)["inplace"] = False
    with suppress(Unsupported):
        return fold_batchnorms(network)
    return network


def fold_batchnorms(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm into the convolution before it.

    A max-pool may lie between them where the BatchNorm's scale is not negative: a larger value is
    larger after it, too. Layers that a subclass of BatchNorm2d holds, such as timm's activations,
    work after it. BatchNorms that are not behind a convolution stay.

    Args:
        network: In evaluation mode; left as it is.

    Returns:
        Its traced graph, with copies of the convolutions that were changed.

    Raises:
        Unsupported: If the network can't be traced.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:  # whatever a network's code makes of stand-ins for tensors
        raise Unsupported(f"can't be traced: {first_line_of(error)}") from error
    traced = fx.GraphModule(tracer.root, graph)
    calls = Counter(node.target for node in graph.nodes)
    layers = dict(traced.named_modules())
    for node in graph.nodes:
        norm = layers.get(str(node.target))
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        rises = norm.weight is None or bool((norm.weight >= 0).all())
        source = node.args[0]
        while (
            len(source.users) == 1
            and rises
            and isinstance(layers.get(str(source.target)), nn.MaxPool2d)
        ):
            source = source.args[0]
        conv = layers.get(str(source.target))
        once = len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
        if not isinstance(conv, nn.Conv2d) or not once:
            continue
        layers[str(source.target)] = folded = fuse_conv_bn_eval(conv, norm)
        traced.set_submodule(str(source.target), folded)
        traced.set_submodule(str(node.target), nn.Sequential(*norm.children()))
        if not any(True for _ in norm.children()):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
