"""Ways to bring a model, one by one: each gives the logits of the network that was saved, or says in one line why not.

The truth is the network itself, in memory, behind preprocessing that is written out here.
"""

import json
import shutil
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import bench as face
from bench.interop.kinds.hf import preprocessing
from bench.interop.subjects import ModelReference, from_module
from bench.results.file import read_result
from tests.support.command import refused
from tests.support.refusals import refusal

CPU = torch.device("cpu")
CLASSES, SIDE = 3, 8
SOURCE = """
import torch
from torch import nn

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = bare()

    def forward(self, images):
        return self.model(images)

class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"_orig_mod": bare()})

    def forward(self, images):
        return self.net["_orig_mod"](images)

class Named(Holding):
    def forward(self, images):
        return {"features": images.flatten(), "scores": self.model(images)}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder with a file of factories, where nothing is cached or downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "mine.py").write_text(SOURCE)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES)).eval()


def load(model, **options):
    return ModelReference(model=model, **options).load(CPU, None)


@torch.no_grad()
def same(subject, expected, images, tolerance=0.0):
    """Whether a subject in eval mode gives the expected logits, in float32."""
    found = subject.model(images)
    assert not any(module.training for module in subject.model.modules())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return True


# ------------------------------------------------------------------------------- a file, and weights for it

SAVED = {
    "as it is": ("bare", lambda state: state, ()),
    "DataParallel": ("bare", lambda state: _put("module.", state), ("2 names matched without module.",)),
    "Lightning": (
        "bare",
        lambda state: {"epoch": 3, "state_dict": _put("model.", state), "optimizer_states": []},
        ("w.pt: taken from state_dict; 2 names matched without model..",),
    ),
    "compiled in the middle": (
        "Holding",
        lambda state: _put("model._orig_mod.", state),
        ("without _orig_mod.", "2 na"),
    ),
    "compiled around": ("bare", lambda state: _put("_orig_mod.module.", state), ("without module. and _orig_mod.",)),
    "a network that holds itself": ("Holding", lambda state: state, ("2 names matched without model.",)),
    "a network that is compiled inside": ("Compiled", lambda state: _put("net.", state), ("without _orig_mod.",)),
    "nested twice": ("bare", lambda state: {"net": {"ema": _put("module.", state)}}, ("taken from net.ema; 2 na",)),
}


def _put(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(("factory", "save", "told"), SAVED.values(), ids=SAVED)
def test_a_file_and_a_state_dictionary(factory, save, told, linear, images):
    torch.save(save(linear.state_dict()), "w.pt")
    subject = load(f"mine.py:{factory}", weights=Path("w.pt"))
    assert same(subject, linear(images), images)
    assert [text for text in told if text not in " ".join(subject.told)] == []
    assert len(subject.told) == (1 if told else 0)


def test_names_are_taken_as_they_are_where_they_fit(linear, images):
    """A network with a layer that is itself called model: nothing is removed, and nothing is told."""
    torch.save(_put("model.", linear.state_dict()), "w.pt")
    subject = load("mine.py:Holding", weights=Path("w.pt"))
    assert same(subject, linear(images), images) and subject.told == ()


def test_what_is_missing_is_said_in_a_few_names():
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    torch.save({**network.state_dict(), "0.weight": torch.zeros(3, 2), "8.bias": torch.zeros(1)}, "shape.pt")
    torch.save({name: value for name, value in network.state_dict().items() if name[0] < "4"}, "less.pt")
    Path("deep.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))"
    )
    told = "shape.pt does not fit the model, which has 18 tensors: 2 of another shape (0.weight: 3x2 for 2x2, 8.bias: 1"
    refusal(lambda: load("deep.py:make", weights=Path("shape.pt")), told)
    told = "10 missing in it (4.bias, 4.weight, 5.bias, ...). Build the network"
    line = refusal(lambda: load("deep.py:make", weights=Path("less.pt")), told)
    assert len(line) < 200
    torch.save(_put("other.", network.state_dict()), "other.pt")
    told = "18 missing in it (0.bias, 0.weight, 1.bias, ...), 18 unknown to the model (other.0.bias, "
    refusal(lambda: load("deep.py:make", weights=Path("other.pt")), told)


# ---------------------------------------------------------------------------------------- timm, torchvision


def preprocessed(images, side, mode, mean, deviation):
    """Resized as Pillow filters, then normalised: by hand, apart from the filter."""
    larger = functional.interpolate(images, (side, side), mode=mode, antialias=True)
    return (larger - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_network_of_timm_with_ones_own_weights(images):
    """Of a network with 5 classes: so many are made, and timm's own configuration is put in front."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=5).eval()
    torch.save({"model": _put("module.", network.state_dict())}, "mine.pt")
    subject = load("timm:test_vit", weights=Path("mine.pt"))
    size, mean, deviation = (network.pretrained_cfg[name] for name in ("input_size", "mean", "std"))
    assert same(subject, network(preprocessed(images, size[1], "bicubic", mean, deviation)), images)
    assert subject.description["adapters"] == [
        f"resize={size[1]},bicubic",
        f"normalize={','.join(map(str, mean))}:{','.join(map(str, deviation))}",
    ]
    assert subject.description["source"] == "timm:test_vit" and subject.name == "mine"
    assert subject.description["library"] == {"timm": timm.__version__}
    plain = load("timm:test_vit", weights=Path("mine.pt"), adapt=("none", f"resize={size[1]}"))
    larger = functional.interpolate(images, size[1:], mode="bilinear")
    assert same(plain, network(larger), images, 1e-5)
    assert plain.description["adapters"] == [f"resize={size[1]}"]
    assert plain.description["checkpoint_digest"] == subject.description["checkpoint_digest"]


def test_what_timm_publishes_is_read_from_its_cache_and_never_fetched_unasked(images, tmp_path, monkeypatch):
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    save = pytest.importorskip("safetensors.torch").save_file
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.manual_seed(0)
    network = timm.create_model("test_vit").eval()
    repository = network.pretrained_cfg["hf_hub_id"]
    place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    told = (f"timm:test_vit is not on this machine: model.safetensors of https://huggingface.co/{repository}",)
    refusal(lambda: load("timm:test_vit"), *told, f"downloaded to {place}. Allow it with --download")
    refusal(lambda: load("timm:test_vti"), "timm has no network 'test_vti'. Did you mean timm:test_vit")
    refusal(lambda: load("timm:test_vit.no_tag"), "timm cannot make 'test_vit.no_tag': ")
    snapshot = place / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")
    refusal(lambda: load("timm:test_vit"), *told)  # a snapshot without the file
    save(network.state_dict(), snapshot / "model.safetensors")
    subject = load("timm:test_vit", adapt=("classes=7,3-4",))
    size, mean, deviation = (network.pretrained_cfg[name] for name in ("input_size", "mean", "std"))
    expected = network(preprocessed(images, size[1], "bicubic", mean, deviation))[:, [7, 3, 4]]
    assert same(subject, expected, images) and subject.description["revision"] == "0123"
    assert subject.description["adapters"][-1] == "classes=7,3-4"
    (snapshot / "model.safetensors").write_bytes(b"nothing")
    refusal(lambda: load("timm:test_vit"), "model.safetensors cannot be loaded as timm:test_vit: SafetensorError")


def test_a_network_of_torchvision(images, tmp_path):
    """With weights of one's own for 5 classes, and with those of torch.hub's cache for all."""
    from torchvision import models

    torch.manual_seed(0)
    network = models.squeezenet1_1(num_classes=5).eval()
    torch.save(network.state_dict(), "mine.pt")
    mine = load("torchvision:squeezenet1_1", weights=Path("mine.pt"))
    larger = preprocessed(images, 224, "bilinear", *IMAGENET)
    assert same(mine, network(larger), images)
    assert mine.description["adapters"][0] == "resize=224,bilinear"
    file = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    told = f"torchvision:squeezenet1_1 is not on this machine: https://download.pytorch.org/models/{file.name} would be"
    refusal(lambda: load("torchvision:squeezenet1_1"), told, f"downloaded to {file}. Allow it with --download")
    file.parent.mkdir(parents=True)
    network = models.squeezenet1_1().eval()
    torch.save(network.state_dict(), file)
    subject = load("torchvision:squeezenet1_1.IMAGENET1K_V1")
    assert same(subject, network(larger), images)
    assert subject.name == "squeezenet1_1.IMAGENET1K_V1"
    torch.save(network, file)  # a pickle
    told = f"{file} cannot be loaded as torchvision:squeezenet1_1: UnpicklingError"
    refusal(lambda: load("torchvision:squeezenet1_1"), told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet18x", "torchvision has no classifier 'resnet18x'. Did you mean torchvision:resnet18"),
        ("fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'"),
        ("resnet18.V9", "torchvision has no weights 'V9' of resnet18. Choose from: IMAGENET1K_V1, DEFAULT."),
        ("", "model 'torchvision:' names nothing after the colon. Give torchvision:NAME."),
    ],
)
def test_names_that_torchvision_does_not_have(name, told):
    refusal(lambda: load(f"torchvision:{name}"), told.removesuffix(", DEFAULT."))


# ------------------------------------------------------------------------------------- TorchScript, ONNX


def scripted(network, images, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, images), file)


def test_a_file_of_torchscript(linear, images):
    scripted(linear, images, "script.pt")
    subject = load("torchscript:script.pt")
    assert same(subject, linear(images), images)
    assert (subject.name, subject.description["source"]) == ("script", "torchscript:script.pt")
    torch.save(linear.state_dict(), "w.pt")
    refusal(lambda: load("torchscript:w.pt"), "w.pt holds no module of TorchScript (", "FACTORY --weights w.pt")
    refusal(lambda: load("torchscript:no.pt"), "no TorchScript file at no.pt")
    refusal(lambda: load("mine.py:bare", weights=Path("script.pt")), "script.pt cannot be read as weights")


@pytest.fixture(scope="module")
def converter():
    pytest.importorskip("onnx2pytorch")
    return pytest.importorskip("onnx")


def graph(onnx, weight, bias, batch, file, flatten=None):
    """A network of Flatten and Gemm, written down."""
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    given = make.make_tensor_value_info("images", number, [batch, 3, SIDE, SIDE])
    answer = make.make_tensor_value_info("logits", number, [batch, CLASSES])
    if flatten is None:
        flatten = make.make_node("Flatten", ["images"], ["flat"])
    nodes = [flatten, make.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1)]
    values = {"weight": weight, "bias": bias, "shape": torch.tensor([1, 3 * SIDE * SIDE])}
    used = [name for name in values if any(name in node.input for node in nodes)]
    numbers = [onnx.numpy_helper.from_array(values[name].detach().numpy(), name) for name in used]
    model = make.make_model(
        make.make_graph(nodes, "network", [given], [answer], numbers),
        opset_imports=[make.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, file)


def test_a_network_of_onnx(converter, linear, images):
    """Its logits and its gradients; one for a single image only, and files that are none."""
    weight, bias = linear[1].weight, linear[1].bias
    graph(converter, weight, bias, "batch", "net.onnx")
    subject = load("onnx:net.onnx")
    assert same(subject, linear(images), images, 1e-6)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(subject.model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(gradient, weight[1].detach().view(3, SIDE, SIDE).expand_as(images))
    graph(converter, weight, bias, 1, "one.onnx")  # declared for one image, and computed for any
    assert same(load("onnx:one.onnx"), linear(images), images, 1e-6)
    reshape = converter.helper.make_node("Reshape", ["images", "shape"], ["flat"])
    graph(converter, weight, bias, 1, "fixed.onnx", reshape)
    refusal(lambda: load("onnx:fixed.onnx"), "fixed.onnx takes 1 image at a time and no other number: export it with")
    Path("bad.onnx").write_bytes(b"not a network")
    refusal(lambda: load("onnx:bad.onnx"), "bad.onnx is not a usable ONNX file: ")
    refusal(lambda: load("onnx:no.onnx"), "no ONNX file at no.onnx")
    changed = weight.detach().clone()
    changed[0, 0] += 1
    graph(converter, changed, bias, "batch", "other.onnx")
    digests = {load(f"onnx:{name}.onnx").description["checkpoint_digest"] for name in ("net", "other")}
    assert len(digests) == 2


# ------------------------------------------------------------------------------------------ transformers


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory):
    """A vision transformer for 16x16 images in a folder of save_pretrained, with a preprocessor's configuration."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    configuration = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=CLASSES)
    network = transformers.ViTForImageClassification(configuration).eval()
    folder = tmp_path_factory.mktemp("hf") / "tiny-vit"
    network.save_pretrained(folder)
    told = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 3, "do_rescale": True}
    told |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder, network


def test_an_image_classifier_of_transformers(saved_vit, images):
    folder, network = saved_vit
    subject = load(f"hf:{folder}")
    expected = network(preprocessed(images, 16, "bicubic", [0.5, 0.4, 0.3], [0.2] * 3)).logits
    assert same(subject, expected, images, 1e-6)
    assert subject.description["adapters"] == [
        "resize=16,bicubic",
        "normalize=0.5,0.4,0.3:0.2,0.2,0.2",
        "output=logits",
    ]
    assert (subject.name, subject.description["source"]) == ("tiny-vit", "hf:tiny-vit")


PREPROCESSORS = {
    "crop": (
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 12}, "do_center_crop": True},
        "16x12",
    ),
    "one number": ({"size": 16, "do_normalize": False}, "16"),
    "no resize": ({"do_resize": False, "size": 4, "do_normalize": False}, None),
}


@pytest.mark.parametrize(("changed", "size"), PREPROCESSORS.values(), ids=PREPROCESSORS)
def test_the_size_that_a_preprocessor_gives(changed, size, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25], "resample": 2, **changed}))
    sizes = [f"resize={size},bilinear"] if size else []
    normalize = ["normalize=0.5:0.25"] if changed.get("do_normalize", True) else []
    assert preprocessing(path) == ((*sizes, *normalize), ())


def test_pixels_that_a_preprocessor_leaves_at_255():
    """(255 x - 127.5) / 51 is (x - 0.5) / 0.2."""
    path = Path("preprocessor_config.json")
    path.write_text(json.dumps({"do_rescale": False, "image_mean": [127.5], "image_std": [51.0], "do_resize": False}))
    assert preprocessing(path) == (("normalize=0.5:0.2",), ())


def test_folders_of_transformers_that_cannot_be_evaluated(saved_vit, images, tmp_path, monkeypatch):
    folder, _ = saved_vit
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert "there is no preprocessor_config.json: images stay in [0, 1]" in load(f"hf:{bare}").told[0]
    (bare / "preprocessor_config.json").write_text(json.dumps({"rescale_offset": True}))
    assert "sets rescale_offset, which is not read" in load(f"hf:{bare}").told[0]
    (bare / "preprocessor_config.json").write_text(json.dumps({"size": 16, "image_mean": "red"}))
    refusal(lambda: load(f"hf:{bare}"), "preprocessor_config.json is damaged: ")
    configuration = json.loads((folder / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**configuration, "num_hidden_layers": 3}))
    refusal(lambda: load(f"hf:{bare}"), "is no whole image classifier: 32 tensors are missing or of another shape (")
    (bare / "config.json").write_text(json.dumps({**configuration, "hidden_size": 80000, "intermediate_size": 80000}))
    refusal(lambda: load(f"hf:{bare}"), "describes a model of far more numbers than")
    (bare / "config.json").write_text(
        json.dumps({**configuration, "auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "x"})
    )
    (bare / "evil.py").write_text("open('exploded', 'w')")
    refusal(lambda: load(f"hf:{bare}"), "cannot be loaded as an image classifier: ")
    assert not Path("exploded").exists()
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    refusal(lambda: load(f"hf:{bare}"), "has no model*.safetensors, and pickles are not read")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    told = "hf:someone/vit is not on this machine: *.json, model*.safetensors of https://huggingface.co/someone/vit"
    refusal(lambda: load("hf:someone/vit"), told, "Allow it with --download")
    refusal(lambda: load("hf:no/such/folder"), "is neither a folder here nor a name on the Hugging Face Hub")


def test_a_classifier_of_transformers_in_bfloat16(saved_vit, images, tmp_path):
    folder, network = saved_vit
    half = deepcopy(network).bfloat16()
    half.save_pretrained(tmp_path / "half")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "half")
    subject = load(f"hf:{tmp_path / 'half'}")
    assert subject.description["adapters"][2:] == ["bfloat16", "output=logits"]
    given = preprocessed(images, 16, "bicubic", [0.5, 0.4, 0.3], [0.2] * 3).bfloat16()
    assert same(subject, half(given).logits.float(), images)


# ---------------------------------------------------------------------------------- what else may be brought


@pytest.mark.parametrize("package", ["timm", "transformers", "onnx2pytorch"])
def test_a_package_that_is_not_installed_is_named(package, monkeypatch):
    name, extra = {"timm": ("timm:x", "timm"), "transformers": ("hf:x", "hf"), "onnx2pytorch": ("onnx:x", "onnx")}[
        package
    ]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    told = f"model '{name}' needs the package {package}, which is not installed: pip install 'advbench[{extra}]'"
    refusal(lambda: load(name), told)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("net.onnx", "nor a folder. For such a file: --model onnx:net.onnx"),
        ("w.pth", "For such a file: --model FILE.py:FACTORY --weights w.pth"),
        ("keras:resnet", "is not FILE.py:FACTORY, such as models/mine.py:make_model, nor any of hf:NAME, onnx:FILE, "),
    ],
)
def test_a_name_of_no_kind_is_answered_with_all(model, told):
    refusal(lambda: load(model), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"model": "onnx:x", "weights": Path("w")},
            "--weights goes with --model FILE.py:FACTORY, timm:NAME, torchvision:NAME",
        ),
        (
            {"model": "mine.py:bare", "download": True},
            "--download goes with --model hf:NAME, timm:NAME, torchvision:NAME",
        ),
        ({"model": "hf:x", "model_dir": Path("m")}, "--model-dir goes with --model robustbench:NAME"),
        ({"checkpoint": Path("run"), "adapt": ("half",)}, "--adapt goes with --model; a checkpoint of"),
        ({"model": "mine.py:bare", "adapt": ("halve",)}, "unknown adapter 'halve'. Did you mean 'half'"),
    ],
)
def test_options_that_a_kind_does_not_take(options, told):
    refusal(lambda: ModelReference(**options).load(CPU, None), told)


def test_the_command_says_records_and_shows_what_was_put_around(bench, linear, tmp_path):
    """One of three outputs, of images that are normalised: told before the work, in the result, in the row."""
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.save(_put("model.", linear.state_dict()), "w.pt")
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, SIDE, SIDE)).astype(np.uint8)
    last = pixels.transpose(0, 2, 3, 1)
    np.savez("d.npz", x_train=last, y_train=np.arange(6) % 3, x_test=last, y_test=np.arange(6) % 3)
    words = ("--model", "mine.py:Named", "--weights", "w.pt", "--dataset", "npz:d.npz", "--suite", "clean")
    line = refused("eval", *words)
    assert line.startswith("the model returned dict for 6 images: it must return one row of logits each, ")
    assert line.endswith("It holds scores (6, 3): --adapt output=scores takes the first.")
    words = (*words, "--adapt", "output=scores", "--adapt", "normalize=0.5:0.25", "--probes", 2)
    code, output = bench("eval", *words)
    assert code == 0, output
    file = "results/w-clean-v1-output=scores-normalize=0.5_0.25.h5"
    assert file in output and "adapters around the model: normalize=0.5:0.25 output=scores" in " ".join(output.split())
    result = read_result(Path(file))
    assert result.run["adapters"] == ["normalize=0.5:0.25", "output=scores"]
    expected = linear((torch.from_numpy(pixels) / 255 - 0.5) / 0.25).argmax(1)
    np.testing.assert_array_equal(result.clean_prediction, expected.numpy())
    same_model = ("--model", "mine.py:Named", "--weights", "w.pt")
    code, output = bench("verify", file, *same_model, "--adapt", "output=scores")
    assert code == 1
    told = "model: refuted: the result is of adapters normalize=0.5:0.25 output=scores, this has output=scores"
    assert told in output
    code, output = bench("verify", file, *same_model, "--adapt", "output=scores", "--adapt", "normalize=0.5:0.25")
    assert code == 0 and "clean predictions: confirmed" in output


def test_a_module_in_memory_with_adapters(linear, images):
    """Half of a module in memory is a copy: its owner keeps float32."""
    half = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).half()
    half[1].load_state_dict(linear[1].state_dict())
    subject = from_module(linear, "mine", CPU, ["half"])
    assert same(subject, half(images.half()).float(), images)
    assert linear[1].weight.dtype == torch.float32
    pixels = (images * 255).round().to(torch.uint8)
    result = face.evaluate(linear, (pixels, torch.arange(4) % 3), "clean", adapt="half", probes=0, quiet=True)
    assert result.run["adapters"] == ["half"]
    np.testing.assert_array_equal(result.clean_prediction, half(pixels.half() / 255).argmax(1).numpy())
