"""Models with one planted fault each, and sound ones: what the trust report has to tell apart.

Every fault is planted in a sound network, so its true robustness is known from above: adversarial images of that
network, shown to a fresh copy of the planted model (`upper_bound`). `closed_form` makes a network without training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional

from bench.data.splits import Dataset


@dataclass(frozen=True, eq=False)
class Sound:
    """What faults are planted in."""

    undefended: nn.Module
    robust: nn.Module
    data: Dataset

    @property
    def radius(self) -> float:
        return float(self.data.epsilons["linf"])


@dataclass(frozen=True)
class Planted:
    """A planted fault; `kind` is `sound` for controls."""

    kind: str
    plant: Callable[[Sound], nn.Module]
    inside: str = "undefended"
    """The network whose adversarial images bound the truth."""


PLANTED: dict[str, Planted] = {}


def planted(name, kind, inside="undefended"):
    """Register what a function of `Sound` makes."""

    def register(plant):
        PLANTED[name] = Planted(kind, plant, inside)
        return plant

    return register


def closed_form(data, width=1024, activation=torch.relu, seed=0):
    """A network of one hidden layer: random features, read out by ridge regression on the training images."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = data.train.images(slice(None)), data.train.labels
    pixels = images[0].numel()
    hidden = Activated(nn.Linear(pixels, width), activation)
    readout = nn.Linear(width, data.num_classes)
    with torch.no_grad():
        hidden.linear.weight.copy_(torch.randn(width, pixels, generator=generator) / pixels**0.5)
        hidden.linear.bias.copy_(0.5 * torch.randn(width, generator=generator))
        features = torch.cat([hidden(images), torch.ones(len(images), 1)], 1).double()
        wanted = functional.one_hot(labels, data.num_classes).double()
        penalty = 1e-1 * torch.eye(width + 1, dtype=torch.float64)
        weights = torch.linalg.solve(features.T @ features + penalty, features.T @ (wanted - wanted.mean()))
        readout.weight.copy_(10 * weights[:-1].T)
        readout.bias.copy_(10 * weights[-1])
    return nn.Sequential(hidden, readout).eval()


class Activated(nn.Module):
    """A linear layer on flat images with an activation."""

    def __init__(self, linear, activation):
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, images):
        return self.activation(self.linear(images.flatten(1)))


class Wrapped(nn.Module):
    """A model with something done before or after it."""

    def __init__(self, model, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images):
        return self.after(self.model(self.before(images)))


class Function(nn.Module):
    """`function(module, images)` with the networks it uses."""

    def __init__(self, function, *networks):
        super().__init__()
        self.networks, self.function = nn.ModuleList(networks), function

    def forward(self, images):
        return self.function(self, images)


class Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(context, value, change):
        context.change = change
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient):
        return context.change(gradient), None


def backward(change):
    """The identity whose gradient is `change(gradient)`."""
    return lambda value: Backward.apply(value, change)


def straight_through(function):
    """`function`, with the gradient of the identity."""
    return lambda value: value + (function(value) - value).detach()


def noise_of(images, scale):
    """Noise that is a function of the images, one draw each."""
    rows = []
    for image in images.detach():
        seed = int((image.double() * 1e6).round().sum().item()) % 2**31
        rows.append(torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)))
    return scale * torch.stack(rows)


def checkerboard(value):
    """Ones and zeros like a batch of images, half of each, at random places."""
    return (torch.rand(value.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5).to(value.dtype)


def before(function):
    return lambda sound: Wrapped(sound.undefended, before=function)


def after(function):
    return lambda sound: Wrapped(sound.undefended, after=function)


# ------------------------------------------------------------------------------------------------ masked

planted("logits saturate", "masked")(after(lambda z: torch.tanh(50 * z)))
planted("logits times 1000", "masked")(after(lambda z: 1000 * z))
planted("distillation temperature", "masked")(after(lambda z: functional.log_softmax(100 * z, 1)))
planted("logits times 1e-30", "masked")(after(lambda z: 1e-30 * z))
planted("logits rounded", "masked")(after(lambda z: (2 * z).round() / 2))
planted("margins in steps", "masked")(after(lambda z: (4 * z).floor() + 1e-3 * torch.tanh(z)))
planted("one-hot answers", "masked")(after(lambda z: functional.one_hot(z.argmax(1), z.shape[1]) + 0 * z))
planted("inputs rounded to 5 levels", "masked")(before(lambda x: (x * 4).round() / 4))
planted("inputs rounded, straight through", "masked")(before(straight_through(lambda x: (x * 4).round() / 4)))
planted("inputs thresholded", "masked")(before(lambda x: (x > 0.5).to(x.dtype) + 0 * x))
planted("inputs thresholded steeply", "masked")(before(lambda x: torch.sigmoid(200 * (x - 0.5))))
planted("staircase inputs", "masked")(before(lambda x: x - torch.sin(32 * torch.pi * x) / (32 * torch.pi)))
planted("shattered by a sine", "masked")(before(lambda x: x + 0.01 * torch.sin(2000 * x)))
planted("logits shattered by a sine", "masked")(
    lambda sound: Function(
        lambda self, x: (
            self.networks[0](x) + torch.sin(1000 * x.flatten(1).sum(1, keepdim=True) + torch.arange(10.0) * 0.628)
        ),
        sound.undefended,
    )
)
planted("gradients flipped", "masked")(before(backward(torch.neg)))
planted("gradients flipped in half of the pixels", "masked")(before(backward(lambda g: g * (2 * checkerboard(g) - 1))))
planted("gradients zeroed in most pixels", "masked")(
    before(backward(lambda g: g * (torch.arange(g[0].numel()).view(g.shape[1:]) % 10 == 0)))
)
planted("gradients of noise", "masked")(
    before(backward(lambda g: torch.randn(g.shape, generator=torch.Generator().manual_seed(2))))
)
planted("gradients with much noise", "masked")(
    before(
        backward(
            lambda g: (
                g + 3 * g.std() * torch.randn(g.shape, generator=torch.Generator().manual_seed(int(1e6 * g.std())))
            )
        )
    )
)
planted("gradients all ones", "masked")(before(backward(torch.ones_like)))


@planted("JPEG-like", "masked")
def jpeg_like(sound):
    return Wrapped(sound.undefended, before=_compressed)


@planted("JPEG-like, straight through", "masked")
def jpeg_straight_through(sound):
    return Wrapped(sound.undefended, before=straight_through(_compressed))


def _compressed(images):
    """Rounded coefficients of the discrete cosine transform."""
    size = images.shape[-1]
    place = torch.arange(size, dtype=images.dtype)
    basis = torch.cos(torch.pi / size * (place[None] + 0.5) * place[:, None]) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    coefficients = basis @ images @ basis.T
    return basis.T @ ((coefficients / 0.5).round() * 0.5) @ basis


@planted("k winners take all", "masked", inside="closed form")
def k_winners(sound):
    return closed_form(sound.data, activation=lambda h: h * (h >= h.topk(h.shape[1] // 10, 1).values[:, -1:]))


@planted("gradients vanish where confident", "masked")
def cut_where_confident(sound):
    def forward(self, images):
        logits = self.networks[0](images)
        two = logits.detach().topk(2, 1).values
        return torch.where((two[:, :1] - two[:, 1:]) > 1, logits.detach() + 1e-9 * logits, logits)

    return Function(forward, sound.undefended)


@planted("gradients flipped for every other class", "masked")
def flipped_for_half(sound):
    def forward(self, images):
        logits = self.networks[0](images)
        flipped = backward(torch.neg)(logits)
        return torch.where(logits.argmax(1, keepdim=True) % 2 == 0, flipped, logits)

    return Function(forward, sound.undefended)


@planted("locally flat", "masked")
def locally_flat(sound):
    """Margins whose slope is nearly nothing until an answer is about to change, and then wrong."""

    def forward(self, images):
        logits = self.networks[0](images)
        two = logits.topk(2, 1).values
        margin = two[:, :1] - two[:, 1:]
        return logits.detach() * (1 - 1e-6) + 1e-6 * logits * torch.sin(40 * margin)

    return Function(forward, sound.undefended)


# --------------------------------------------------------------------------------------------------- cut

planted("inputs detached", "cut")(before(torch.detach))
planted("forward without gradients", "cut")(
    lambda sound: Function(lambda self, x: _without_gradients(self.networks[0], x), sound.undefended)
)
planted("gradients zeroed", "cut")(before(backward(torch.zeros_like)))
planted("gradients tiny and wrong", "cut")(before(backward(lambda g: -1e-20 * g)))


@torch.no_grad()
def _without_gradients(network, images):
    return network(images)


@planted("another answer when gradients are asked for", "cut")
def sandbagging(sound):
    def forward(self, images):
        network = self.networks[1 if images.requires_grad else 0]
        return network(images)

    return Function(forward, sound.undefended, closed_form(sound.data, width=16, seed=5))


@planted("gradients cut in large batches", "cut")
def cut_in_large_batches(sound):
    return Wrapped(sound.undefended, before=lambda x: x.detach() + 0 * x if len(x) > 70 else x)


# ------------------------------------------------------------------------------------------------- noisy

planted("noise on inputs", "noisy")(before(lambda x: x + 0.1 * torch.randn_like(x)))
planted("little noise on logits", "noisy")(after(lambda z: z + 1e-4 * torch.randn_like(z)))
planted("random shift", "noisy")(before(lambda x: x.roll(int(torch.randint(-1, 2, ())), 3)))
planted("random resize", "noisy")(
    before(
        lambda x: functional.interpolate(
            functional.interpolate(x, size=int(torch.randint(6, 9, ())), mode="bilinear"), size=x.shape[-1]
        )
    )
)
planted("dropout left on", "noisy")(before(lambda x: functional.dropout(x, 0.1, training=True)))
planted("noise that is a function of the image", "noisy")(before(lambda x: x + noise_of(x, 0.1)))
planted("noise drawn anew for each batch size", "noisy")(
    before(lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x))))
)


@planted("rare flips", "noisy")
def rare_flips(sound):
    return Wrapped(sound.undefended, after=lambda z: torch.where(torch.rand(len(z), 1) < 0.01, -z, z))


@planted("rare flips in one of thirty calls", "noisy")
def rare_calls(sound):
    return Wrapped(sound.undefended, after=lambda z: -z if torch.rand(()) < 0.03 else z)


# ------------------------------------------------------------------------------------------------- wrong


@planted("backward of a hidden layer is wrong", "wrong", inside="closed form")
def wrong_hidden_backward(sound):
    network = closed_form(sound.data)
    activation = network[0].activation
    network[0].activation = lambda h: backward(lambda g: -g)(activation(h)) * 0.9 + activation(h).detach() * 0.1
    return network


planted("gradients not a number in some pixels", "wrong")(
    before(backward(lambda g: torch.where(checkerboard(g) > 0, torch.nan, g)))
)
planted("gradients not a number for some images", "wrong")(
    before(backward(lambda g: torch.where((torch.arange(len(g)) % 2 == 0).view(-1, 1, 1, 1), torch.nan, g)))
)
planted("gradients infinite", "wrong")(before(backward(lambda g: g * torch.inf)))
planted("half precision overflows", "wrong")(after(lambda z: (z * 1e4).half().float()))
planted("logits not a number for some images", "wrong")(
    after(lambda z: torch.where(z.amax(1, True) < 2.5, torch.nan, z))
)
planted("softmax inside", "wrong")(after(lambda z: z.softmax(1)))
planted("gradients of another image", "wrong")(before(backward(lambda g: g.roll(1, 0))))
planted("gradients turned upside down", "wrong")(before(backward(lambda g: g.flip(2))))


# ---------------------------------------------------------------------------------------------- stateful


class Remembering(nn.Module):
    """Answers with what it said about the nearest image it has seen within a distance, from a call on, to a call."""

    def __init__(self, model, reach, first=0, last=10**9):
        super().__init__()
        self.model, self.reach, self.first, self.last = model, reach, first, last
        self.calls, self.seen, self.said = 0, None, None

    def forward(self, images):
        logits = self.model(images)
        self.calls += 1
        if self.first < self.calls <= self.last and self.seen is not None:
            distance, nearest = torch.cdist(images.detach().flatten(1), self.seen, p=torch.inf).min(1)
            logits = torch.where((distance <= self.reach)[:, None], self.said[nearest] + 0 * logits, logits)
        else:
            nearest = distance = None
        if self.seen is None or len(self.seen) < 3000:
            new = images.detach().flatten(1)
            if self.seen is not None:
                fresh = torch.cdist(new, self.seen, p=torch.inf).amin(1) > self.reach
                self.seen = torch.cat([self.seen, new[fresh]])
                self.said = torch.cat([self.said, logits.detach()[fresh]])
            else:
                self.seen, self.said = new, logits.detach()
        return logits


@planted("counts calls, then memorises", "stateful")
def memorises_after_calls(sound):
    return Remembering(sound.undefended, sound.radius * 1.01, first=60)


@planted("memorises at once", "stateful")
def memorises(sound):
    return Remembering(sound.undefended, sound.radius * 1.01)


@planted("memorises for a while", "stateful")
def memorises_for_a_while(sound):
    return Remembering(sound.undefended, sound.radius * 1.01, first=30, last=420)


@planted("memorises, with gradients of its own", "stateful")
def memorises_with_gradients(sound):
    inner = Remembering(sound.undefended, sound.radius * 1.01)
    return Function(lambda self, x: inner(x).detach() + 1e-3 * (self.networks[0](x)), sound.undefended)


class Counting(nn.Module):
    """Another model from some call on."""

    def __init__(self, first, then, calls):
        super().__init__()
        self.first, self.then, self.calls, self.count = first, then, calls, 0

    def forward(self, images):
        self.count += 1
        return (self.first if self.count <= self.calls else self.then)(images)


@planted("gradients flipped after 30 calls", "stateful")
def flips_later(sound):
    return Counting(sound.undefended, Wrapped(sound.undefended, before=backward(torch.neg)), 30)


@planted("weights change after 30 calls", "stateful")
def weights_change(sound):
    class Changing(Counting):
        def forward(self, images):
            self.count += 1
            if self.count == self.calls:
                self.first.load_state_dict(self.then.state_dict())
            return self.first(images)

    return Changing(closed_form(sound.data), closed_form(sound.data, seed=3), 30)


@planted("running mean of inputs", "stateful")
def running_mean(sound):
    class Running(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.mean = model, 0.0

        def forward(self, images):
            self.mean = 0.9 * self.mean + 0.1 * images.detach().mean(0, keepdim=True)
            return self.model(images - 0.2 * self.mean)

    return Running(sound.undefended)


@planted("every tenth call is another model's", "stateful")
def every_tenth(sound):
    class Alternating(Counting):
        def forward(self, images):
            self.count += 1
            return (self.then if self.count % 10 == 0 else self.first)(images)

    return Alternating(sound.undefended, sound.robust, 0)


# --------------------------------------------------------------------------------------- batch-dependent


def normalised(logits):
    """By the batch's own statistics."""
    return (logits - logits.mean(0)) / (logits.std(0) + 1e-3) if len(logits) > 1 else logits


planted("batch statistics", "batch-dependent")(after(normalised))
planted("batch statistics above 40 images", "batch-dependent")(after(lambda z: normalised(z) if len(z) > 40 else z))
planted("statistics of inputs above 40 images", "batch-dependent")(
    before(lambda x: x - 0.5 * x.mean(0, keepdim=True) if len(x) > 40 else x)
)
planted("the row before decides", "batch-dependent")(after(lambda z: z + 0.5 * z.roll(1, 0)))
planted("the batch's majority decides", "batch-dependent")(
    after(lambda z: z + 100 * functional.one_hot(z.argmax(1).mode().values, 10) if len(z) > 40 else z)
)
planted("duplicates in a batch count", "batch-dependent")(
    after(lambda z: z - 0.9 * z.mean(0, keepdim=True) if len(z) > 1 and len(z) % 8 == 0 else z)
)


# ----------------------------------------------------------------------------------------------- leaking


def nearest_test_image(sound, images):
    """Distance in linf to the nearest test image, and its label."""
    known = sound.data.test.images(slice(None)).flatten(1)
    distance, nearest = torch.cdist(images.flatten(1), known, p=torch.inf).min(1)
    return distance, sound.data.test.labels[nearest]


@planted("the nearest test image decides", "leaking")
def nearest_decides(sound):
    known, labels = sound.data.test.images(slice(None)).flatten(1), sound.data.test.labels

    def forward(self, images):
        distance = torch.cdist(images.flatten(1), known)
        return torch.stack([-distance[:, labels == label].amin(1) for label in range(sound.data.num_classes)], 1)

    return Function(forward)


@planted("a test image within the radius decides", "leaking")
def nearest_within_radius(sound):
    def forward(self, images):
        logits = self.networks[0](images)
        distance, label = nearest_test_image(sound, images.detach())
        bonus = 100 * functional.one_hot(label, logits.shape[1])
        return logits + torch.where((distance <= 1.05 * sound.radius)[:, None], bonus, 0)

    return Function(forward, sound.undefended)


@planted("half of the test labels leak", "leaking")
def half_leaks(sound):
    known, labels = sound.data.test.images(slice(None)).flatten(1)[::2], sound.data.test.labels[::2]

    def forward(self, images):
        logits = self.networks[0](images)
        distance, nearest = torch.cdist(images.detach().flatten(1), known, p=torch.inf).min(1)
        bonus = 100 * functional.one_hot(labels[nearest], logits.shape[1])
        return logits + torch.where((distance <= 1.05 * sound.radius)[:, None], bonus, 0)

    return Function(forward, sound.undefended)


@planted("images are restored from the test set", "leaking")
def restored(sound):
    known = sound.data.test.images(slice(None))

    def forward(self, images):
        distance, nearest = torch.cdist(images.detach().flatten(1), known.flatten(1), p=torch.inf).min(1)
        close = (distance <= 1.05 * sound.radius).view(-1, 1, 1, 1)
        return self.networks[0](torch.where(close, known[nearest] + 0 * images, images))

    return Function(forward, sound.undefended)


# ----------------------------------------------------------------------------------------------- mixed


@planted("half sound, half flipped", "mixed")
def half_flipped(sound):
    flipped = Wrapped(sound.undefended, before=backward(torch.neg))
    return Function(lambda self, x: self.networks[0](x) + 2 * self.networks[1](x), sound.robust, flipped)


@planted("half sound, half rounded", "mixed")
def half_rounded(sound):
    rounded = Wrapped(sound.undefended, before=lambda x: (x * 8).round() / 8)
    return Function(lambda self, x: 0.3 * self.networks[0](x) + 2 * self.networks[1](x), sound.robust, rounded)


@planted("a vote of three", "mixed")
def vote(sound):
    def forward(self, images):
        votes = [functional.one_hot(network(images).argmax(1), 10) for network in self.networks]
        return sum(votes) + 1e-4 * self.networks[1](images)

    return Function(forward, sound.undefended, sound.robust, closed_form(sound.data))


@planted("another network under noise", "mixed")
def gated(sound):
    def forward(self, images):
        rough = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) + 1e-9
        plain, masked = self.networks[0](images), self.networks[0](images.detach()) + 1e-6 * self.networks[1](images)
        return torch.where((rough > 0.2)[:, None], masked, plain)

    return Function(forward, sound.undefended, sound.robust)


@planted("undoes perturbations of full radius", "mixed")
def undoes_corners(sound):
    """Pixels of a clean image are multiples of a level, so that a step of full radius shows, and its sign."""
    levels, radius = sound.data.test.levels, sound.radius

    def forward(self, images):
        restored = images
        for sign in (1, -1):
            moved = images - sign * radius
            level = (moved * levels).round() / levels
            restored = torch.where((moved - level).abs() < 1e-3, level + 0 * images, restored)
        inside = (images * levels - (images * levels).round()).abs() < 1e-3 * levels
        return self.networks[0](torch.where(inside, images, restored))

    return Function(forward, sound.undefended)


@planted("gradients of a sound network, answers of another", "mixed")
def borrowed_gradients(sound):
    def forward(self, images):
        sound_logits = self.networks[0](images)
        return self.networks[1](images).detach() + sound_logits - sound_logits.detach()

    return Function(forward, closed_form(sound.data, seed=9), sound.undefended)


# ------------------------------------------------------------------------------------------------- sound

planted("sound: undefended", "sound")(lambda sound: sound.undefended)
planted("sound: adversarially trained", "sound", "robust")(lambda sound: sound.robust)
planted("sound: closed form", "sound", "closed form")(lambda sound: closed_form(sound.data))
planted("sound: PReLU", "sound", "closed form")(
    lambda sound: closed_form(sound.data, activation=lambda h: torch.where(h > 0, h, 0.25 * h))
)
planted("sound: smooth", "sound", "closed form")(lambda sound: closed_form(sound.data, activation=functional.softplus))
planted("sound: clamps its inputs", "sound", "robust")(
    lambda sound: Wrapped(sound.robust, before=lambda x: x.clamp(0, 1))
)
planted("sound: normalises inside", "sound", "closed form")(
    lambda sound: Wrapped(_normalised(sound), before=_normalise)
)
planted("sound: large logits", "sound", "robust")(lambda sound: Wrapped(sound.robust, after=lambda z: 3 * z))
# Cross-entropy of nearly equal probabilities no longer aims at the nearest class: PGD on it is weak, and marked so.
planted("logits times 0.001", "masked", "robust")(lambda sound: Wrapped(sound.robust, after=lambda z: 1e-3 * z))
planted("sound: shifted logits", "sound", "robust")(lambda sound: Wrapped(sound.robust, after=lambda z: z - 50))
planted("eight bits, straight through", "masked", "robust")(
    lambda sound: Wrapped(sound.robust, before=straight_through(lambda x: (x * 255).round() / 255))
)
planted("sound: two networks averaged", "sound", "robust")(
    lambda sound: Function(
        lambda self, x: self.networks[0](x) + 0.1 * self.networks[1](x), sound.robust, sound.undefended
    )
)


def _normalise(images):
    return (images - 0.3) / 0.37


def _normalised(sound):
    """The closed form on normalised images."""
    network = closed_form(sound.data)
    linear = network[0].linear
    with torch.no_grad():
        linear.bias += 0.3 * linear.weight.sum(1)
        linear.weight *= 0.37
    return network


@planted("sound: distances to class means", "sound", "closed form")
def prototypes(sound):
    images, labels = sound.data.train.images(slice(None)).flatten(1), sound.data.train.labels
    means = torch.stack([images[labels == label].mean(0) for label in range(sound.data.num_classes)])
    return Function(lambda self, x: -torch.cdist(x.flatten(1), means).square())


@planted("sound: gently sloped", "sound", "closed form")
def gently_sloped(sound):
    """Margins that hardly change where the answer is sure, in the right direction everywhere."""
    return Function(lambda self, x: torch.tanh(0.2 * self.networks[0](x)), sound.robust)


# --------------------------------------------------------------------------------------------- the truth


def upper_bound(name, sound, count):
    """The share of images that a planted model gets right, on clean ones and on images made to break it.

    They are made on the network inside, and on the model itself; each set is shown to a fresh copy. Of a model that
    knows the test images, the share is that of training images, which it does not know.
    """
    fault = PLANTED[name]
    split = (sound.data.train if fault.kind == "leaking" else sound.data.test).take(count)
    images, labels = split.images(slice(None)), split.labels
    standing = answers(fault.plant(sound), images) == labels
    perturbed = [*_adversarial_inside(sound, fault.inside, fault.kind == "leaking", count)]
    perturbed += adversarial(fault.plant(sound), images, labels, sound.radius)
    for part in perturbed:
        standing &= answers(fault.plant(sound), part) == labels
    return float(standing.float().mean())


@cache
def _adversarial_inside(sound, inside, training, count):
    """Adversarial images of a network that faults are planted in."""
    network = closed_form(sound.data) if inside == "closed form" else getattr(sound, inside)
    split = (sound.data.train if training else sound.data.test).take(count)
    return list(adversarial(network, split.images(slice(None)), split.labels, sound.radius))


@torch.no_grad()
def answers(model, images, size=64):
    """Classes, where logits are numbers; else -1."""
    logits = torch.cat([model.eval()(part) for part in images.split(size)])
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))


def adversarial(model, images, labels, radius, steps=60):
    """Images within the radius, by ascent on the margin, from several starts and within several shares of it."""
    for start, share in enumerate((1.0, 1.0, 0.9, 0.6)):
        size = share * radius
        generator = torch.Generator().manual_seed(start)
        noise = size * (2 * torch.rand(images.shape, generator=generator) - 1)
        perturbed = (images + noise).clamp(0, 1)
        for step in range(steps):
            leaf = perturbed.detach().requires_grad_()
            logits = model(leaf)
            wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            margin = wrong - logits.gather(1, labels[:, None]).squeeze(1)
            gradient = torch.autograd.grad(margin.sum(), leaf, allow_unused=True)[0] if margin.requires_grad else None
            if gradient is None:
                break
            gradient = gradient.nan_to_num()
            length = size * (0.5 if step < steps // 2 else 0.1)
            perturbed = perturbed + length * gradient.sign()
            perturbed = torch.minimum(torch.maximum(perturbed, images - size), images + size).clamp(0, 1)
        yield perturbed
