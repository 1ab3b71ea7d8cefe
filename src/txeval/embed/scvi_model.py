"""The scVI model: training on a sparse matrix, reading profiles into its latent space, and its files.

Network and loss are those of scvi-tools. Training goes through neither AnnData nor Lightning: the matrix may lie on
disk, Ctrl-C works, and a killed training goes on where it was. `Optimiser` has the settings of scvi-tools.
"""

from __future__ import annotations

import json
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from txeval.compute.arrays import F32, Ints
from txeval.compute.random import stream, stream_seed
from txeval.compute.threads import torch_threads
from txeval.embed.checkpoints import file_digest, float_values, tensor_fault, write_whole
from txeval.errors import InputError, NotComputable

__all__ = [
    "DISPERSIONS",
    "LIKELIHOODS",
    "Architecture",
    "History",
    "ScVIModel",
    "SparseRows",
    "Training",
    "build",
    "default_epochs",
    "fit",
    "partition",
    "require_scvi",
]

_MODEL, _WEIGHTS = "model.json", "weights.npz"
_FORMAT = "txeval scVI model"
_VERSION = 1

#: What `Architecture.likelihood` and `.dispersion` may be.
LIKELIHOODS = ("zinb", "nb", "poisson")
DISPERSIONS = ("gene", "gene-batch", "gene-cell")

#: Seconds between two signs of life within an epoch.
_TELL_EVERY = 5.0

Progress = Callable[[int, int, str], None]


def require_scvi() -> str:
    """Version of scvi-tools.

    Raises
    ------
    InputError
        It is not installed, or too old.
    """
    remedy = "pip install 'txeval[scvi]'"
    try:
        found = version("scvi-tools")
    except PackageNotFoundError:
        raise InputError("scVI needs the package scvi-tools, which is not installed", remedy=remedy) from None
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) < (1, 4):
        raise InputError(f"scVI needs scvi-tools 1.4 or later; {found} is installed", remedy=remedy)
    return found


@dataclass(frozen=True)
class Architecture:
    """Sizes and choices of the network.

    Attributes
    ----------
    genes, batches
        Values read per sample, and number of batches that the decoder tells apart (1: none).
    """

    genes: int
    batches: int = 1
    latent: int = 256
    layers: int = 2
    hidden: int = 512
    dropout: float = 0.0
    dispersion: str = "gene"
    likelihood: str = "zinb"


def build(architecture: Architecture) -> Any:
    """Make `scvi.module.VAE` with fresh weights, drawn from torch's generator."""
    require_scvi()
    with warnings.catch_warnings():
        # What other packages say of each other while they are imported is not the user's business.
        warnings.simplefilter("ignore")
        from scvi.module import VAE

    return VAE(
        n_input=architecture.genes,
        n_batch=architecture.batches,
        n_labels=1,
        n_hidden=architecture.hidden,
        n_latent=architecture.latent,
        n_layers=architecture.layers,
        dropout_rate=architecture.dropout,
        dispersion=architecture.dispersion,
        gene_likelihood=architecture.likelihood,
        latent_distribution="normal",
    )


@dataclass(frozen=True)
class Training:
    """How a model is trained; the defaults are those of scvi-tools.

    Attributes
    ----------
    max_epochs
        0: as many as scvi-tools takes (`default_epochs`).
    kl_warmup
        Epochs over which the weight of the Kullback-Leibler term rises from 0 to 1.
    patience
        With `early_stopping`: epochs without a better ELBO of the validation samples after which training ends.
    """

    max_epochs: int = 0
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-6
    eps: float = 0.01
    kl_warmup: int = 400
    early_stopping: bool = False
    patience: int = 45
    train_share: float = 0.9


@dataclass
class History:
    """How a training went.

    Attributes
    ----------
    elbo_train, elbo_validation
        Negative evidence lower bound per sample, for each epoch; the second with early stopping only.
    """

    elbo_train: list[float] = field(default_factory=list)
    elbo_validation: list[float] = field(default_factory=list)
    stopped_early: bool = False
    resumed_at: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs that are over."""
        return len(self.elbo_train)

    def waited(self) -> int:
        """Epochs since the best validation ELBO."""
        found = self.elbo_validation
        return len(found) - 1 - int(np.argmin(found)) if found else 0


def default_epochs(n: int) -> int:
    """Epochs that scvi-tools takes for n samples: 400, and fewer above 20,000 samples in proportion."""
    return max(1, min(round(20_000 / max(1, n) * 400), 400))


def partition(n: int, batch_size: int, share: float, seed: int) -> tuple[Ints, Ints]:
    """Split n samples into those that are trained on and those that are validated on.

    As scvi-tools does: ceil(share n) for training, but a last minibatch of 1 or 2 samples goes to the others.
    """
    order = stream(seed, "scvi", "validation").permutation(n)
    n_train = int(np.ceil(share * n))
    rest = n_train % batch_size
    if 0 < rest < 3 and n_train > rest:
        n_train -= rest
    return np.sort(order[n - n_train :]), np.sort(order[: n - n_train])


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's generator seeded within the block, and as it was after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _unchecked() -> Iterator[None]:
    """Distributions that take any value: log-normalised ones are no counts, and checks of each minibatch cost time."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The value argument must be within the support")
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class SparseRows:
    """A matrix of which a few rows at a time are wanted dense; its parts may be memory-mapped.

    Parameters
    ----------
    values, columns
        (nnz,) float32 and int32, row by row.
    ends
        (n + 1,) int64: the stored row i has the values from ends[i] to ends[i + 1].
    width
        Number of columns.
    order
        (n,) stored row that each row here is; None: as they are stored.
    """

    def __init__(
        self, values: F32, columns: npt.NDArray[np.int32], ends: Ints, width: int, order: Ints | None = None
    ) -> None:
        # Slices of a memory map cost more than those of an array on the same memory.
        self.values, self.columns = np.asarray(values), np.asarray(columns)
        self.starts, self.stops = ends[:-1], ends[1:]
        if order is not None:
            self.starts, self.stops = self.starts[order], self.stops[order]
        self.shape = (len(ends) - 1, width)

    @classmethod
    def of(cls, matrix: Any) -> SparseRows:
        """Those of a CSR matrix."""
        csr = sp.csr_matrix(matrix, dtype=np.float32)
        return cls(csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int64), csr.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of its parts."""
        return int(self.values.nbytes + self.columns.nbytes + 16 * self.shape[0])

    def dense(self, rows: Ints) -> F32:
        """Rows as an array (m, width) float32."""
        out = np.zeros((len(rows), self.shape[1]), dtype=np.float32)
        for row, start, stop in zip(out, self.starts[rows].tolist(), self.stops[rows].tolist(), strict=True):
            row[self.columns[start:stop]] = self.values[start:stop]
        return out


def _tensors(data: SparseRows, batch: Ints, rows: Ints, device: torch.device) -> dict[str, torch.Tensor]:
    """A minibatch as `VAE` reads it."""
    x = torch.from_numpy(data.dense(rows))
    codes = torch.from_numpy(batch[rows]).unsqueeze(1)
    return {"X": x.to(device), "batch": codes.to(device), "labels": torch.zeros_like(codes).to(device)}


def kl_weight(epoch: int, warmup: int) -> float:
    """Weight of the Kullback-Leibler term in an epoch, counted from 0."""
    return min(1.0, epoch / warmup) if warmup else 1.0


def minibatches(rows: Ints, size: int, seed: int, epoch: int) -> Iterator[Ints]:
    """Minibatches of an epoch; they depend on seed and epoch alone."""
    order = stream(seed, "scvi", "order", epoch).permutation(rows)
    for start in range(0, len(order), size):
        # Rows that lie near to each other are read faster, and their order within a minibatch has no meaning.
        yield np.sort(order[start : start + size])


def fit(
    architecture: Architecture,
    data: SparseRows,
    batch: Ints,
    training: Training,
    *,
    seed: int,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    progress: Progress = lambda done, total, text: None,
) -> tuple[Any, History]:
    """Train a model.

    Weights, validation samples, minibatches and noise each have a random stream of their own, that of an epoch named
    by its number: a training that goes on from a checkpoint gives the weights of one that was never stopped.

    Parameters
    ----------
    data
        (n, genes), not negative, no empty rows.
    batch
        (n,) int64, below `architecture.batches`.
    checkpoint
        File of the state after the last epoch; None: keep none.
    key
        What data and settings are: a checkpoint of another key is not gone on with.
    progress
        Called with (epochs done, epochs in all, text).

    Returns
    -------
    (`scvi.module.VAE` in evaluation mode on `device`, History)

    Raises
    ------
    NotComputable
        Fewer than 3 samples, or a loss that is not finite.
    """
    device = device or torch.device("cpu")
    n = data.shape[0]
    if n < 3:
        raise NotComputable(f"scVI cannot be trained on {n} samples with any expression")
    own, others = partition(n, training.batch_size, training.train_share, seed)
    total = training.max_epochs or default_epochs(n)
    with _seeded(device, stream_seed(seed, "scvi", "weights")):
        module = build(architecture).to(device)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(
        parameters, lr=training.lr, eps=training.eps, weight_decay=training.weight_decay, fused=True
    )
    history = History()
    if checkpoint is not None:
        history = _resume(checkpoint, key, module, optimiser, device)
    keeper = _Keeper(checkpoint)
    with torch_threads(1), _unchecked():
        while history.epochs < total and not history.stopped_early:
            epoch = history.epochs
            with _seeded(device, stream_seed(seed, "scvi", "noise", epoch)):
                _epoch(module, optimiser, data, batch, own, training, history, seed, total, device, progress)
                if training.early_stopping and len(others):
                    history.elbo_validation.append(_validate(module, data, batch, others, training.batch_size, device))
                    history.stopped_early = history.waited() >= training.patience
            shown = history.elbo_train[-1]
            if not np.isfinite([shown, *history.elbo_validation[-1:]]).all():
                raise NotComputable(
                    f"the training of scVI diverged in epoch {epoch + 1}: its loss is {shown}"
                    f" (likelihood {architecture.likelihood}, lr {training.lr:g}); a lower lr may help"
                )
            progress(history.epochs, total, f"scVI: training, ELBO {-shown:,.1f}")
            keeper.keep(lambda: _state(key, module, optimiser, history), last=history.stopped_early)
    return module.eval(), history


def _epoch(
    module: Any,
    optimiser: torch.optim.Optimizer,
    data: SparseRows,
    batch: Ints,
    rows: Ints,
    training: Training,
    history: History,
    seed: int,
    total: int,
    device: torch.device,
    progress: Progress,
) -> None:
    epoch = history.epochs
    module.train()
    bound = torch.zeros((), dtype=torch.float64, device=device)
    weight = kl_weight(epoch, training.kl_warmup)
    done, told = 0, time.monotonic()
    for part in minibatches(rows, training.batch_size, seed, epoch):
        _, _, loss = module(_tensors(data, batch, part, device), loss_kwargs={"kl_weight": weight})
        optimiser.zero_grad(set_to_none=True)
        loss.loss.backward()
        optimiser.step()
        bound += (loss.reconstruction_loss_sum + loss.kl_local_sum).detach()
        done += len(part)
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            progress(epoch, total, f"scVI: training, epoch {epoch + 1} at {done / len(rows):.0%}")
    history.elbo_train.append(float(bound) / len(rows))


def _validate(module: Any, data: SparseRows, batch: Ints, rows: Ints, size: int, device: torch.device) -> float:
    module.eval()
    bound = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            _, _, loss = module(_tensors(data, batch, part, device), loss_kwargs={"kl_weight": 1.0})
            bound += float(loss.reconstruction_loss_sum + loss.kl_local_sum)
    return bound / len(rows)


class _Keeper:
    """Writes checkpoints after each epoch, but spends no more than a twentieth of the time on it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._since = time.monotonic()
        self._cost = 0.0

    def keep(self, state: Callable[[], dict[str, Any]], *, last: bool = False) -> None:
        """Write the state, unless the last time is too recent for what writing takes."""
        now = time.monotonic()
        if self.path is None or (not last and now - self._since < 20 * self._cost):
            return
        write_whole(self.path, lambda handle: torch.save(state(), handle))
        self._since = time.monotonic()
        self._cost = self._since - now


def _state(key: str, module: Any, optimiser: torch.optim.Optimizer, history: History) -> dict[str, Any]:
    return {
        "key": key,
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": asdict(history),
    }


def _resume(path: Path, key: str, module: Any, optimiser: torch.optim.Optimizer, device: torch.device) -> History:
    """Go on from a checkpoint where there is one of this very training; start afresh otherwise."""
    if not path.is_file():
        return History()
    try:
        with warnings.catch_warnings():
            # torch warns of kinds of pickle that it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location=device, weights_only=True)
        if state["key"] != key:
            return History()
        history = History(**state["history"])
        optimiser.load_state_dict(state["optimiser"])
        module.load_state_dict(state["module"])
    # A file that was cut short can fail in any way; nothing of it is used then.
    except Exception as why:
        reason = (str(why).splitlines() or [""])[0][:120]
        return History(notes=[f"the checkpoint {path.name} was damaged, training began anew ({reason})"])
    history.resumed_at.append(history.epochs)
    return history


class ScVIModel:
    """A trained scVI model: what it reads, its weights, and how it came about.

    Attributes
    ----------
    module
        `scvi.module.VAE` in evaluation mode.
    architecture
        Its sizes.
    input
        "lognorm" (normalised to 10,000, then log1p) or "counts": what it was trained on.
    genes
        (k,) names, in the order in which it reads them.
    batches
        Batches that its decoder tells apart; empty: none.
    about
        Plain data: name, what it was trained on and how, versions.
    """

    def __init__(
        self,
        module: Any,
        architecture: Architecture,
        input: str,
        genes: tuple[str, ...],
        batches: tuple[str, ...] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module
        self.architecture = architecture
        self.input = input
        self.genes = genes
        self.batches = batches
        self.about: dict[str, Any] = dict(about or {})

    def latent(self, profiles: F32) -> F32:
        """Mean of the latent distribution of each profile.

        The encoder reads no batch (`encode_covariates` is off in scvi-tools), so batches that were not in the training
        need no treatment.

        Parameters
        ----------
        profiles
            (m, k) values of `genes`, on the scale of `input`.

        Returns
        -------
        (m, latent) float32
        """
        device = next(self.module.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(profiles, dtype=np.float32)).to(device)
        batch = torch.zeros((len(x), 1), dtype=torch.int64, device=device)
        # The network draws from the latent distribution on its way, though only its mean is wanted.
        with _seeded(device, 0), torch_threads(1), _unchecked(), torch.inference_mode():
            found: F32 = self.module.inference(x=x, batch_index=batch)["qz"].loc.float().cpu().numpy()
        return found

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the model to a folder: `weights.npz` and `model.json`, numbers and names only.

        Raises
        ------
        InputError
            The folder holds a model already, or cannot be written to.
        """
        folder = Path(folder)
        if (folder / _MODEL).exists() and not overwrite:
            raise InputError(f"{folder} holds a model already", remedy="give another folder")
        state = {name: value.detach().cpu().numpy() for name, value in self.module.state_dict().items()}
        write_whole(folder / _WEIGHTS, lambda handle: np.savez(handle, **state))
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "weights_sha256": file_digest(folder / _WEIGHTS),
            "architecture": asdict(self.architecture),
            "input": self.input,
            "genes": list(self.genes),
            "batches": list(self.batches),
            "about": self.about,
        }
        # Written last: a folder with this file is complete.
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_whole(folder / _MODEL, lambda handle: handle.write(text.encode()))

    @staticmethod
    def is_saved(folder: Path) -> bool:
        """Whether a folder holds a complete model."""
        return (folder / _MODEL).is_file() and (folder / _WEIGHTS).is_file()

    @staticmethod
    def digest(folder: Path) -> str:
        """SHA-256 over the files of a saved model, in hexadecimal; InputError where they do not fit together."""
        return f"{file_digest(folder / _MODEL)[:32]}{_record(folder)['weights_sha256'][:32]}"

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | None = None) -> ScVIModel:
        """Read a model that `save` wrote. No code is run and nothing is unpickled.

        Raises
        ------
        InputError
            A file is missing, damaged, or not what the other says.
        """
        folder = Path(folder)
        record = _record(folder)
        architecture = _architecture(record["architecture"], folder)
        if len(record["genes"]) != architecture.genes:
            raise InputError(
                f"{folder / _MODEL}: {len(record['genes']):,} genes for {architecture.genes:,} inputs", remedy=_AGAIN
            )
        # Without storage: sizes are compared with those of the file before any memory is taken.
        with torch.device("meta"):
            module = build(architecture)
        module.load_state_dict(_weights(folder / _WEIGHTS, module.state_dict()), strict=True, assign=True)
        module = module.to(device or torch.device("cpu")).eval()
        return cls(
            module, architecture, record["input"], tuple(record["genes"]), tuple(record["batches"]), record["about"]
        )


_AGAIN = "copy the folder again from where it was made, or train the model again"


def _record(folder: Path) -> dict[str, Any]:
    """The checked content of `model.json`."""
    path = folder / _MODEL
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} with a trained scVI model", remedy="check the path")
    for name in (_MODEL, _WEIGHTS):
        if not (folder / name).is_file():
            hint = ""
            if (folder / "model.pt").is_file():
                hint = "; its model.pt is of scvi-tools, which stores Python objects and is not read here"
            raise InputError(
                f"{folder}: {name} is missing, so this is no scVI model that txeval saved{hint}",
                remedy="give the folder of `txeval embed SCREEN --model scvi --save DIR`",
            )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as why:
        raise InputError(f"{path}: not a whole JSON file ({why})", remedy=_AGAIN) from why
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise InputError(f"{path}: not the record of a trained scVI model", remedy=_AGAIN)
    if record.get("version") != _VERSION:
        raise InputError(
            f"{path}: a model in version {record.get('version')!r}; this program reads version {_VERSION}",
            remedy="update txeval",
        )
    kinds: dict[str, type] = {
        "weights_sha256": str,
        "architecture": dict,
        "input": str,
        "genes": list,
        "batches": list,
        "about": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise InputError(f"{path}: {name} is {str(record.get(name))[:60]!r}, not a {kind.__name__}", remedy=_AGAIN)
    texts = [*record["genes"], *record["batches"]]
    if not all(isinstance(text, str) for text in texts) or len(set(record["genes"])) != len(record["genes"]):
        raise InputError(f"{path}: genes and batches must be names, each once", remedy=_AGAIN)
    if record["input"] not in ("lognorm", "counts"):
        raise InputError(f"{path}: input is {record['input']!r}, not lognorm or counts", remedy=_AGAIN)
    found = file_digest(folder / _WEIGHTS)
    if found != record["weights_sha256"]:
        raise InputError(
            f"{folder / _WEIGHTS} has the SHA-256 digest {found[:16]}..., but {_MODEL} was written for"
            f" {record['weights_sha256'][:16]}...",
            remedy=_AGAIN,
        )
    return record


def _architecture(found: Mapping[str, Any], folder: Path) -> Architecture:
    default = Architecture(1)
    try:
        made = Architecture(**found)
    except TypeError as why:
        raise InputError(f"{folder / _MODEL}: architecture: {why}", remedy=_AGAIN) from None
    for name, value in asdict(made).items():
        kind = type(getattr(default, name))
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{folder / _MODEL}: architecture: {name} is {value!r}", remedy=_AGAIN)
        # The meta device takes no memory, but layers are objects; no real model comes near these.
        if kind is int and not 1 <= value <= (64 if name == "layers" else 10_000_000):
            raise InputError(f"{folder / _MODEL}: architecture: {name} is {value!r}", remedy=_AGAIN)
    if made.likelihood not in LIKELIHOODS or made.dispersion not in DISPERSIONS or not 0 <= made.dropout < 1:
        raise InputError(
            f"{folder / _MODEL}: architecture: likelihood {made.likelihood!r}, dispersion {made.dispersion!r},"
            f" dropout {made.dropout!r}",
            remedy=_AGAIN,
        )
    return made


def _weights(path: Path, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of an .npz file that have to be exactly those wanted, in kind and shape."""
    state = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise InputError(f"{path}: holds compressed parts, which `save` does not write", remedy=_AGAIN)
        with np.load(path, allow_pickle=False) as archive:
            missing, extra = sorted(set(wanted) - set(archive.files)), sorted(set(archive.files) - set(wanted))
            if missing or extra:
                raise InputError(
                    f"{path}: these are not the weights of this model; missing: {', '.join(missing[:5]) or 'none'};"
                    f" unexpected: {', '.join(extra[:5]) or 'none'}",
                    remedy=_AGAIN,
                )
            for name, like in wanted.items():
                array = archive[name]
                if array.dtype.kind not in "biufc":
                    raise InputError(f"{path}: tensor {name} is {array.dtype}, not numbers", remedy=_AGAIN)
                value, integer = torch.from_numpy(array), not like.is_floating_point()
                fault = tensor_fault(value, like.shape, integer=integer)
                if fault:
                    raise InputError(f"{path}: tensor {name} {fault}", remedy=_AGAIN)
                state[name] = value if integer else float_values(value, name, path=path, remedy=_AGAIN)
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as why:
        raise InputError(f"{path}: not a whole file of weights ({why})", remedy=_AGAIN) from why
    return state
