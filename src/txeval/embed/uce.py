"""UCE (Rosen et al. 2023): genes drawn by expression, read as protein embeddings in the order of the genome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txeval.compute.arrays import F32, Ints
from txeval.compute.random import stream
from txeval.data.scale import require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import (
    KeyReport,
    check_keys,
    find_file,
    float_values,
    load_columns,
    load_json,
    load_table,
    load_tensors,
    tensor_shape,
    weights_folder,
)
from txeval.embed.frozen import (
    SHARED_OPTIONS,
    Item,
    aliases_of,
    choice,
    complete,
    describe,
    digests,
    embed_sequences,
    gene_names,
    inference,
    pad,
    pick_device,
    positive,
    sample_keys,
)
from txeval.embed.genes import GeneMatch, match_genes
from txeval.embed.transformer import PostNormEncoder, parameter_shapes
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = [
    "CHROMOSOME_END",
    "CLS",
    "EMBEDDERS",
    "Files",
    "Genome",
    "Model",
    "TokenTable",
    "Uce",
    "draw_sentence",
    "find_files",
    "forward",
    "load_genome",
    "load_model",
    "match",
    "sampling_weights",
]

_SOURCE = "https://doi.org/10.6084/m9.figshare.24320806 (code: MIT)"

#: Tokens of the official vocabulary that are no genes.
PAD, CHROMOSOME_END, CLS = 0, 2, 3

_WEIGHTS = {"uce-4l": ("4layer_model.torch",), "uce-33l": ("33l_8ep_1024t_1280.torch", "33l_*.torch")}
_HEADS = 20

#: Tokens of the released models, and the chromosomes among them.
_RELEASED = (145_469, 1_895)

#: Smallest share of the genes with a protein embedding that have a place on a chromosome.
_PLACED = 0.8

#: Protein rows that are encoded at a time: 2,048 x 5,120 values are 40 MiB.
_ROWS = 2048

#: Species of the released model -> beginning of the file with its protein embeddings.
_PROTEINS = {
    "human": "Homo_sapiens",
    "mouse": "Mus_musculus",
    "frog": "Xenopus_tropicalis",
    "zebrafish": "Danio_rerio",
    "mouse_lemur": "Microcebus_murinus",
    "pig": "Sus_scrofa",
    "macaca_fascicularis": "Macaca_fascicularis",
    "macaca_mulatta": "Macaca_mulatta",
}


@dataclass(frozen=True)
class Files:
    """Files of UCE.

    Attributes
    ----------
    proteins
        Protein embeddings of the species (only the order of the genes in it is used), or a .json list of these genes.
    """

    weights: Path
    offsets: Path
    chromosomes: Path
    proteins: Path

    def all(self) -> list[Path]:
        """Every file, weights first."""
        return [self.weights, self.offsets, self.chromosomes, self.proteins]


@dataclass(frozen=True)
class Genome:
    """Where the genes of a species are: in the token table and on the chromosomes.

    Attributes
    ----------
    row, chromosome, start
        Symbol in capitals -> row of the token table; code of its chromosome; position on it. Only genes with all three.
    n_codes
        Number of chromosomes of all species: as many last rows of the token table stand for them.
    unplaced
        Genes with a protein embedding and without a place on a chromosome.
    """

    row: Mapping[str, int]
    chromosome: Mapping[str, int]
    start: Mapping[str, int]
    n_codes: int
    unplaced: int


def find_files(folder: Path, model: str, species: str = "human") -> Files:
    """Find the files of a model in the folder `model_files` of the official code, or one like it.

    Raises
    ------
    InputError
        One is missing, or there are no protein embeddings for the species.
    """
    name = _PROTEINS.get(species, species)
    places = ["protein_embeddings", ".", "protein_embeddings_export/ESM2"]
    patterns = [f"{place}/{name}*gene_symbol_to_embedding_ESM2.pt" for place in places]
    patterns += [f"{place}/{name}*.json" for place in places]
    return Files(
        find_file(folder, _WEIGHTS[model], "the weights of UCE"),
        find_file(folder, ["species_offsets.pkl", "species_offsets.json"], "the table of species"),
        find_file(folder, ["species_chrom.csv"], "the table of chromosomes"),
        find_file(folder, patterns, f"the protein embeddings of {species}"),
    )


def _symbols(path: Path) -> dict[str, int]:
    """Symbol in capitals -> its position in the file of protein embeddings, as the official code counts it."""
    listed = list(load_json(path)) if path.suffix == ".json" else list(load_tensors(path))
    return {name: number for number, name in enumerate(dict.fromkeys(str(symbol).upper() for symbol in listed))}


def load_genome(files: Files, species: str = "human") -> Genome:
    """Read where the genes of a species are.

    Raises
    ------
    InputError
        The species is not in the tables.
    """
    offsets = load_table(files.offsets, int)
    if species not in offsets:
        raise unknown("species", species, offsets, where=str(files.offsets))
    symbols = _symbols(files.proteins)
    places: dict[str, tuple[str, int]] = {}
    labels: set[str] = set()
    columns = ("species", "gene_symbol", "chromosome", "start")
    for kind, symbol, chromosome, start in load_columns(
        files.chromosomes, columns, remedy=f"get species_chrom.csv from {_SOURCE}"
    ):
        label = f"{kind}_{chromosome}"
        labels.add(label)
        if kind == species:
            try:
                places.setdefault(symbol.upper(), (label, int(float(start))))
            except ValueError:
                raise InputError(
                    f"{files.chromosomes}: the start of {symbol} is {start!r}, not a number",
                    remedy=f"the file was cut short or changed: get it again from {_SOURCE}",
                ) from None
    if not places:
        raise InputError(f"{files.chromosomes}: no gene of species {species!r}", remedy="check the option species")
    # The code of a chromosome is its place among the sorted names of the chromosomes of all species.
    codes = {label: code for code, label in enumerate(sorted(labels))}
    placed = {name: number for name, number in symbols.items() if name in places}
    if len(placed) < _PLACED * len(symbols):
        raise InputError(
            f"{files.chromosomes}: has a place for only {len(placed):,} of the {len(symbols):,} genes of"
            f" {files.proteins.name}",
            remedy="the file was cut short, or is of another release: get both from the same one",
        )
    return Genome(
        {name: number + offsets[species] for name, number in placed.items()},
        {name: codes[places[name][0]] for name in placed},
        {name: places[name][1] for name in placed},
        len(codes),
        len(symbols) - len(placed),
    )


def match(names: Sequence[str], genome: Genome, aliases: Mapping[str, str] | None = None) -> GeneMatch:
    """Match gene symbols, whatever their case, to the genes of a species."""
    return match_genes(names, genome.row, aliases=aliases, ignore_case=True)


def sampling_weights(counts: npt.ArrayLike) -> F32:
    """Probability of each gene of a sample to be drawn: log(1 + count) / sum of these, float32."""
    weights = np.log1p(np.asarray(counts, dtype=np.float32))
    out: F32 = weights / weights.sum(dtype=np.float32)
    return out


def draw_sentence(
    weights: npt.NDArray[Any],
    rows: Ints,
    chromosome: Ints,
    start: Ints,
    rng: Any,
    *,
    first_chromosome: int,
    size: int = 1024,
) -> npt.NDArray[np.int64]:
    """Draw the sentence that stands for a sample.

    Genes are drawn with replacement; the chromosomes come in random order, the genes on each in that of the genome:
    CLS, then for each chromosome its token, its genes, its end.

    Parameters
    ----------
    weights, rows, chromosome, start
        Of the expressed genes: probability, row of the token table, code of the chromosome, position.
    rng
        `numpy.random.Generator` or `RandomState`: `size` uniform numbers, then one shuffle of the chromosomes.
    first_chromosome
        Row of the token table of chromosome 0.
    """
    cumulated = np.cumsum(np.asarray(weights, dtype=np.float64))
    cumulated /= cumulated[-1]
    drawn = cumulated.searchsorted(rng.random(size), side="right")
    codes, place = np.unique(chromosome[drawn], return_inverse=True)
    order = np.arange(len(codes))
    rng.shuffle(order)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(codes))
    rank = rank[place.reshape(-1)]
    # By chromosome in its new order, on it by position, at one position by gene.
    drawn = drawn[np.lexsort((drawn, start[drawn], rank))]
    lengths = np.bincount(rank, minlength=len(codes))
    out = np.empty(1 + size + 2 * len(codes), dtype=np.int64)
    out[0] = CLS
    opening = 1 + np.concatenate([[0], np.cumsum(lengths + 2)[:-1]])
    out[opening] = codes[order] + first_chromosome
    out[opening + lengths + 1] = CHROMOSOME_END
    out[np.arange(size) + 2 + 2 * np.repeat(np.arange(len(codes)), lengths)] = rows[drawn]
    return out


class _Block(nn.Sequential):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__(nn.Linear(wide, out), nn.LayerNorm(out), nn.GELU())


class Model(nn.Module):
    """The part of UCE that reads encoded tokens, under the official parameter names."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, middle: int, out: int) -> None:
        super().__init__()
        self.width = width
        self.transformer_encoder = PostNormEncoder(layers, width, heads, hidden)
        self.decoder = nn.Sequential(_Block(width, middle), _Block(middle, out), _Block(out, out), nn.Linear(out, out))

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Embed samples: encoded tokens (m, length, width), `pos_encoder.pe` (length, width) -> (m, out)."""
        x = tokens * math.sqrt(self.width) + positions
        first = self.transformer_encoder(x, mask, first_only=True)[:, 0]
        return F.normalize(self.decoder(first), dim=1)


class TokenTable:
    """Encoded tokens: `encoder(normalised protein embedding)` of the rows that are needed.

    The encoder sees one token at a time, so its answers are computed once for each row, and the token table of the
    checkpoint (3 GB) is never read as a whole.

    Attributes
    ----------
    values
        (k, width) float32.
    number
        (rows of the checkpoint,) int32: place in `values`, -1 where a row was not asked for.
    """

    def __init__(
        self, state: Mapping[str, Tensor], rows: npt.ArrayLike, path: Path, device: torch.device | str = "cpu"
    ) -> None:
        def values(name: str, value: Tensor) -> Tensor:
            return float_values(value, name, path=path).to(device)

        table = state["pe_embedding.weight"]
        needed = np.unique(np.asarray(rows, dtype=np.int64))
        weight, bias, gain, shift = (
            values(name, state[name])
            for name in ("encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias")
        )
        self.values = torch.empty(len(needed), weight.shape[0], device=device)
        for low in range(0, len(needed), _ROWS):
            vectors = values("pe_embedding.weight", table[torch.from_numpy(needed[low : low + _ROWS])])
            inner = F.gelu(F.linear(F.normalize(vectors, dim=1), weight, bias))
            self.values[low : low + _ROWS] = F.layer_norm(inner, inner.shape[1:], gain, shift)
        self.number = np.full(table.shape[0], -1, dtype=np.int32)
        self.number[needed] = np.arange(len(needed), dtype=np.int32)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Encoded tokens (..., width) of places in `values`."""
        return F.embedding(tokens, self.values)


@dataclass(frozen=True)
class Loaded:
    """UCE as it was read.

    Attributes
    ----------
    positions
        (longest sequence, width).
    first_chromosome
        Row of the token table of chromosome 0.
    """

    model: Model
    table: TokenTable
    positions: Tensor
    first_chromosome: int
    keys: KeyReport
    sizes: Mapping[str, int]


def load_model(files: Files, genome: Genome, genes: Sequence[str], device: torch.device | str = "cpu") -> Loaded:
    """Load UCE for some genes.

    Every size is read from the checkpoint, but the number of attention heads, which it does not tell: 20, as in both
    released models.

    Raises
    ------
    InputError
        The checkpoint is not one of UCE, or its token table does not fit the tables of genes and chromosomes.
    """
    state = load_tensors(files.weights)
    measured = ("pe_embedding.weight", "transformer_encoder.layers.0.linear1.weight", "decoder.3.weight",
                "decoder.0.0.weight", "encoder.0.weight")  # fmt: skip
    if not all(name in state for name in measured):
        raise InputError(
            f"{files.weights}: this is no checkpoint of UCE; it holds, for example, {', '.join(list(state)[:5])}",
            remedy=f"get it from {_SOURCE}",
        )
    (rows, token_width), (hidden, width), (dim, _), (middle, _), _ = (
        tensor_shape(state, name, 2, path=files.weights) for name in measured
    )
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer_encoder.layers.")})
    if width % _HEADS:
        raise InputError(f"{files.weights}: width {width} does not divide into {_HEADS} heads", remedy=_SOURCE)
    with torch.device("meta"):
        model = Model(layers, width, _HEADS, hidden, middle, dim).eval()
    wanted = parameter_shapes(model)
    others = {
        "encoder.0.weight": (width, token_width),
        "encoder.0.bias": (width,),
        "encoder.2.weight": (width,),
        "encoder.2.bias": (width,),
        "pe_embedding.weight": (rows, token_width),
        "pos_encoder.pe": (0, 1, width),
    }
    if "pos_encoder.pe" in state:
        others["pos_encoder.pe"] = (tensor_shape(state, "pos_encoder.pe", 3, path=files.weights)[0], 1, width)
    keys = check_keys(
        state, {**wanted, **others}, path=files.weights, unused=["binary_decoder.*", "gene_embedding_layer.*"]
    )
    if rows == _RELEASED[0] and genome.n_codes != _RELEASED[1]:
        raise InputError(
            f"{files.chromosomes}: {genome.n_codes:,} chromosomes, but the released models know {_RELEASED[1]:,}",
            remedy=f"the file was cut short or changed: get it again from {_SOURCE}",
        )
    first_chromosome = rows - genome.n_codes
    used = [genome.row[gene] for gene in genes]
    if first_chromosome <= CLS or max(genome.row.values(), default=0) >= first_chromosome:
        raise InputError(
            f"{files.weights}: its {rows:,} tokens, the last {genome.n_codes:,} of them chromosomes"
            f" ({files.chromosomes.name}), do not reach to the gene with token {max(genome.row.values(), default=0):,}"
            f" ({files.proteins.name}, {files.offsets.name})",
            remedy="take all files from the same release of UCE",
        )
    chromosomes = {genome.chromosome[gene] + first_chromosome for gene in genes}
    model.load_state_dict({name: float_values(state[name], name, path=files.weights) for name in wanted}, assign=True)
    return Loaded(
        model.to(device),
        TokenTable(state, [PAD, CHROMOSOME_END, CLS, *used, *chromosomes], files.weights, device),
        float_values(state["pos_encoder.pe"], "pos_encoder.pe", path=files.weights)[:, 0].to(device),
        first_chromosome,
        keys,
        {"layers": layers, "width": width, "tokens": rows, "hidden": hidden, "dim": dim},
    )


def forward(loaded: Loaded, items: Sequence[Item], length: int, *, mask: str = "official") -> F32:
    """Embed sentences.

    Parameters
    ----------
    items
        Rows of the token table, one array for each sample.
    length
        Length to pad them to. With the official mask it changes the result.
    mask
        "official": padding is not masked, but gets 1 added to its attention logits, as the official code does with
        every torch from version 2 on; "bool": padding is masked.

    Returns
    -------
    (m, dim) float32, each row of length 1
    """
    device = loaded.positions.device
    (tokens,), real = pad(
        [(loaded.table.number[item[0]],) for item in items], length, [int(loaded.table.number[PAD])], device
    )
    if real is not None and mask == "official":
        real = (~real).float()
    out: F32 = loaded.model(loaded.table(tokens), loaded.positions[:length], real).float().cpu().numpy()
    return out


class Uce:
    """Embeddings from the official UCE checkpoints.

    Parameters
    ----------
    name
        Key of `_WEIGHTS`.
    """

    def __init__(self, name: str, summary: str) -> None:
        options = {
            **SHARED_OPTIONS,
            "batch_size": (
                25,
                "samples padded together, in the order of the screen; changes the result with mask=official",
            ),
            "mask": ("official", "official (padding gets +1 instead of being masked: batch mates matter) or bool"),
            "sample_size": (1024, "genes drawn for a sample, with replacement"),
            "species": ("human", "species of the screen, as named in species_offsets.pkl"),
        }
        self.info = EmbedderInfo(
            name=name,
            summary=summary,
            stochastic=True,
            options=options,
            needs="counts; gene symbols of one of 8 species; weights",
            licence="code: MIT; weights: see the figshare page",
            citation="Rosen et al. 2023, doi:10.1101/2023.11.28.568918",
        )

    def _open(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], Files]:
        options = complete(self.info, given)
        choice(self.info.name, options, "mask", ("official", "bool"))
        positive(self.info.name, options, "batch_size", "sample_size")
        require_scale(screen, {"counts"}, step=self.info.name)
        folder = weights_folder(options["weights"], self.info.name, _SOURCE)
        return options, find_files(folder, self.info.name, options["species"])

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check options and scale; digests of the files."""
        options, files = self._open(screen, options)
        return digests(files.all(), options)

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Draw a sentence for every sample and embed it, by blocks."""
        options, files = self._open(screen, options)
        device = pick_device(options["device"] or context.device, options["precision"])
        genome = load_genome(files, options["species"])
        genes = match(gene_names(screen, options["genes"]), genome, aliases_of(options))
        genes.require(options["min_gene_overlap"], model=self.info.name, vocabulary=genome.row, wants="gene symbols")
        loaded = load_model(files, genome, genes.genes, device)
        rows, chromosome, start = (
            np.array([table[gene] for gene in genes.genes], dtype=np.int64)
            for table in (genome.row, genome.chromosome, genome.start)
        )
        longest = options["sample_size"] + 1 + 2 * len(np.unique(chromosome))
        if longest > len(loaded.positions):
            raise InputError(
                f"{self.info.name}: {options['sample_size']:,} genes on {len(np.unique(chromosome))} chromosomes make"
                f" {longest:,} tokens; the model has {len(loaded.positions):,} positions",
                remedy="use a smaller sample_size",
            )
        names = sample_keys(screen)

        def encode(counts: Any, numbers: Ints) -> list[Item | None]:
            out: list[Item | None] = []
            for row, low, high in zip(numbers, counts.indptr[:-1], counts.indptr[1:], strict=True):
                own = counts.indices[low:high]
                if not len(own):
                    out.append(None)
                    continue
                sentence = draw_sentence(
                    sampling_weights(counts.data[low:high]),
                    rows[own],
                    chromosome[own],
                    start[own],
                    stream(context.seed, "uce", names[row]),
                    first_chromosome=loaded.first_chromosome,
                    size=options["sample_size"],
                )
                out.append((sentence,))
            return out

        def run(items: Sequence[Item], length: int) -> F32:
            with inference(device, options["precision"]):
                return forward(loaded, items, length, mask=options["mask"])

        def fill(out: F32) -> Ints:
            return embed_sequences(
                lambda: screen.blocks(max_elements=context.max_elements),
                screen.n,
                genes,
                out,
                encode=encode,
                forward=run,
                width=max(loaded.sizes["hidden"], 3 * loaded.sizes["width"]),
                device=device,
                batch_size=options["batch_size"],
                chunk=options["batch_size"] if options["mask"] == "official" else 0,
                progress=context.progress,
                name=self.info.name,
            )

        official = options["mask"] == "official"
        return describe(
            screen,
            context,
            self.info,
            loaded.sizes["dim"],
            fill,
            files=files.all(),
            keys=loaded.keys,
            genes=genes,
            device=device,
            note=f"each sample depends slightly on those it is padded with: {options['batch_size']} consecutive samples"
            " of the screen (mask=official)"
            if official
            else "",
            more={
                "model": dict(loaded.sizes),
                "depends_on_batch_mates": official,
                "genes_without_chromosome": genome.unplaced,
                "random_stream": "one for each sample, named by seed and "
                + ("sample name" if screen.has_unique_names else "row of the file"),
            },
        )


EMBEDDERS = (
    Uce("uce-4l", "UCE with 4 layers: 1,280 dimensions, 1,024 genes drawn for each sample"),
    Uce("uce-33l", "UCE with 33 layers, 650 M parameters: 1,280 dimensions, 1,024 genes drawn for each sample"),
)
