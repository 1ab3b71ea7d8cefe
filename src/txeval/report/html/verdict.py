"""The answer in words: which representation is best on how many levels, and how sure that is.

Two models count as told apart on a level where their paired difference is beyond chance (p < 0.05 after Holm's
correction for all pairs) on at least one of its headline scores. Where contributions of units are not stored, their
95 % intervals must not overlap. That is stricter: intervals that overlap a little may belong to a difference that is
real.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from txeval.report.style import post_title, with_post

__all__ = ["Contender", "LevelScores", "LevelVerdict", "ScoreColumn", "Verdict", "judge"]


@dataclass(frozen=True)
class Contender:
    """One score of one model under one post-processing; NaN where there is none."""

    model: str
    post_processing: str
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class ScoreColumn:
    """One headline score: every model under every post-processing.

    Attributes
    ----------
    chosen
        Model -> its score under the post-processing that was chosen for it; of models that are absent, the best.
    told_apart
        Pairs of models -> whether their paired difference is beyond chance; of pairs that are absent, the intervals
        decide.
    """

    label: str
    contenders: Sequence[Contender]
    higher_is_better: bool = True
    chosen: Mapping[str, Contender] = field(default_factory=dict)
    told_apart: Mapping[tuple[str, str], bool] = field(default_factory=dict)

    def best_of(self, model: str) -> Contender | None:
        """A model's score under the post-processing chosen for it."""
        if model in self.chosen:
            return self.chosen[model]
        mine = [one for one in self.contenders if one.model == model and not math.isnan(one.value)]
        # max and min keep the first of equals, as the summary table does.
        return (max if self.higher_is_better else min)(mine, key=lambda one: one.value, default=None)

    def better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one > other if self.higher_is_better else one < other

    def apart(self, one: Contender, other: Contender) -> bool | None:
        """Whether the first is better than the second beyond chance; None where that is not known."""
        pair = (one.model, other.model)
        if pair in self.told_apart:
            return self.told_apart[pair] and self.better(one.value, other.value)
        if any(math.isnan(bound) for bound in (one.low, one.high, other.low, other.high)):
            return None
        return one.low > other.high if self.higher_is_better else one.high < other.low


@dataclass(frozen=True)
class LevelScores:
    """The headline scores of one level.

    Attributes
    ----------
    random_is_best
        The random baseline is what is aimed at: it mixes batches perfectly.
    """

    level: int
    title: str
    columns: Sequence[ScoreColumn]
    reason: str = ""
    random_is_best: bool = False


@dataclass(frozen=True)
class LevelVerdict:
    """Who leads one level.

    Attributes
    ----------
    leaders
        Models that are best on most headline scores; several where they share the lead, none where nothing is scored.
    post_processings
        Of the leaders, under which they are best.
    rivals
        Models that cannot be told apart from the leader.
    unknown
        Models of which that is not known, as one of the scores has no interval.
    above_baseline
        "yes": the leader's interval lies beyond the baseline's on one of its scores; "unclear": its value does;
        "no"; "" where there is no baseline, or where the baseline is what is aimed at.
    """

    level: int
    title: str
    leaders: tuple[str, ...] = ()
    post_processings: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    above_baseline: str = ""
    reason: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer for one screen and protocol."""

    headline: str
    sentences: tuple[str, ...]
    levels: tuple[LevelVerdict, ...]
    choice: tuple[str, str] | None = None
    wins: Mapping[str, int] = field(default_factory=dict)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a person would list them."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + f" and {shown[-1]}" if shown else ""


def judge(levels: Sequence[LevelScores], models: Collection[str], baselines: Collection[str]) -> Verdict:
    """Say who is best.

    Parameters
    ----------
    levels
        In the order of the levels.
    models
        Labels of all models, the baselines among them.
    baselines
        Those without information: they cannot win.
    """
    real = [model for model in models if model not in baselines]
    found = tuple(_level(level, real, [model for model in models if model in baselines]) for level in levels)
    scored = [one for one in found if one.leaders]
    wins = {model: sum(model in one.leaders for one in scored) for model in real}
    choice = _choice(levels, real)
    return Verdict(_headline(wins, scored, real), tuple(_sentences(found, wins, choice, real)), found, choice, wins)


def _level(level: LevelScores, models: Sequence[str], baselines: Sequence[str]) -> LevelVerdict:
    places: dict[str, list[ScoreColumn]] = {}
    for column in level.columns:
        best = {model: one for model in models if (one := column.best_of(model)) is not None}
        if best:
            top = (max if column.higher_is_better else min)(one.value for one in best.values())
            for model, one in best.items():
                if one.value == top:
                    places.setdefault(model, []).append(column)
    if not places:
        return LevelVerdict(level.level, level.title, reason=level.reason, sentence=level.reason)
    most = max(map(len, places.values()))
    leaders = tuple(model for model in models if len(places.get(model, [])) == most)
    leader = leaders[0]
    won = places[leader]
    scores = [one for column in won if (one := column.best_of(leader)) is not None]
    posts = tuple(dict.fromkeys(post for one in scores for post in one.post_processing.split(" | ")))
    rivals, unknown = [], []
    for model in models:
        if model in leaders:
            continue
        apart = _apart(won, leader, model)
        if apart is None:
            unknown.append(model)
        elif not apart:
            rivals.append(model)
    above = "" if level.random_is_best else _above(won, leader, baselines)
    made = LevelVerdict(level.level, level.title, leaders, posts, tuple(rivals), tuple(unknown), above)
    sentence = _level_sentence(made, len(models), len(won), len(level.columns))
    return LevelVerdict(**{**vars(made), "sentence": sentence})


def _apart(columns: Sequence[ScoreColumn], leader: str, other: str) -> bool | None:
    """Whether a model is told apart from the leader on one of the scores that the leader is best on."""
    answers: list[bool | None] = []
    for column in columns:
        one, two = column.best_of(leader), column.best_of(other)
        if one is not None and two is not None:
            answers.append(column.apart(one, two))
    if any(answers):
        return True
    return False if False in answers else None


def _above(columns: Sequence[ScoreColumn], leader: str, baselines: Sequence[str]) -> str:
    answers = []
    for column in columns:
        base = [one for name in baselines if (one := column.best_of(name)) is not None]
        mine = column.best_of(leader)
        if not base or mine is None:
            continue
        high = (max if column.higher_is_better else min)(base, key=lambda one: one.value)
        if not column.better(mine.value, high.value):
            answers.append("no")
        else:
            answers.append("yes" if column.apart(mine, high) else "unclear")
    return next((answer for answer in ("yes", "unclear", "no") if answer in answers), "")


def _level_sentence(found: LevelVerdict, n_models: int, n_won: int, n_columns: int) -> str:
    name = listed(found.leaders)
    posts = [post for post in found.post_processings if post]
    how = ""
    if posts and len(found.leaders) == 1:
        how = f" {with_post(posts[0])}" if len(posts) == 1 else f" with {listed([post_title(post) for post in posts])}"
    share = f" on {n_won} of {n_columns} scores" if n_columns > 1 and n_won < n_columns else ""
    parts = []
    if n_models > 1:
        if len(found.leaders) == n_models:
            parts.append(f"{name} score the same.")
        elif len(found.leaders) > 1:
            parts.append(f"{name} share the lead{share}.")
            if found.rivals:
                parts.append(f"They cannot be told apart from {listed(found.rivals)}.")
        else:
            parts.append(f"{name}{how} leads{share}.")
            if found.rivals:
                parts.append(f"It cannot be told apart from {listed(found.rivals)}.")
            if found.unknown:
                parts.append(f"Without intervals, how sure that is against {listed(found.unknown)} is not known.")
            if not found.rivals and not found.unknown:
                parts.append("Its lead is clear.")
    else:
        parts.append(f"{name}{how} is the only representation.")
    if found.above_baseline == "no":
        parts.append("Not above the random baseline.")
    elif found.above_baseline == "unclear":
        parts.append("Above the random baseline, but not clearly.")
    elif found.above_baseline == "yes" and n_models == 1:
        parts.append("Clearly above the random baseline.")
    return " ".join(parts)


def _headline(wins: Mapping[str, int], scored: Sequence[LevelVerdict], models: Sequence[str]) -> str:
    if not models:
        return "There are only baselines here: nothing to compare."
    if not scored:
        return "No level could be scored."
    of = f"{len(scored)} level{'s' if len(scored) > 1 else ''}"
    if len(models) == 1:
        clear = sum(one.above_baseline == "yes" for one in scored)
        judged = sum(one.above_baseline != "" for one in scored)
        if judged:
            of_judged = f"{clear} of {judged} levels" if judged > 1 else "the one level" if clear else "no level"
            return f"{models[0]} is clearly above the random baseline on {of_judged}."
        return f"{models[0]} is scored on {of}."
    most = max(wins.values())
    top = [model for model in models if wins[model] == most]
    if len(top) == 1:
        with_posts = [post for one in scored if top[0] in one.leaders for post in one.post_processings]
        usual = {post: with_posts.count(post) for post in dict.fromkeys(with_posts)}
        post = max(usual, key=lambda name: usual[name]) if usual else ""
        mostly = "" if usual.get(post) == len(with_posts) else "mostly "
        how = f", {mostly}{with_post(post)}" if post and usual[post] * 2 > len(with_posts) else ""
        return f"{top[0]} is best on {most} of {of}{how}."
    return f"{listed(top)} are each best on {most} of {of}."


def _sentences(
    found: Sequence[LevelVerdict], wins: Mapping[str, int], choice: tuple[str, str] | None, models: Sequence[str]
) -> list[str]:
    made = []
    scored = [one for one in found if one.leaders]
    if len(models) > 1 and scored:
        made += _how_sure(scored, wins, models)
    if choice is not None:
        if len(models) == 1:
            made.append(f"Over all levels it is best {with_post(choice[1])} (lowest mean rank).")
        else:
            made.append(
                f"The best single choice for all levels is {choice[0]} {with_post(choice[1])} (lowest mean rank)."
            )
    below = [_numbered(one) for one in scored if one.above_baseline == "no"]
    if below:
        made.append(f"Nothing is above the random baseline on level {listed(below, 6)}.")
    missing = [_numbered(one) for one in found if not one.leaders]
    if missing:
        made.append(f"Not scored: level {listed(missing, 6)}.")
    return made


def _numbered(one: LevelVerdict) -> str:
    return f"{one.level} {one.title}"


def _how_sure(scored: Sequence[LevelVerdict], wins: Mapping[str, int], models: Sequence[str]) -> list[str]:
    """On which levels the lead is clear, and from whom the winner cannot be told apart."""
    sure = [one for one in scored if len(one.leaders) == 1 and not one.rivals and not one.unknown]
    if len(sure) == len(scored):
        return ["The lead is clear on every level."]
    where = f": level {listed([_numbered(one) for one in sure], 6)}" if sure else ""
    made = [f"The lead is clear on {len(sure)} of {len(scored)} levels{where}."]
    most = max(wins.values())
    for winner in [model for model in models if wins[model] == most][:1]:
        led = [one for one in scored if winner in one.leaders]
        close = [one for one in led if one.rivals or len(one.leaders) > 1]
        if close:
            others = [m for one in close for m in (*one.leaders, *one.rivals) if m != winner]
            names = listed(list(dict.fromkeys(others)))
            levels = listed([str(one.level) for one in close], 6)
            made.append(f"{winner} cannot be told apart from {names} on level {levels}.")
        blind = [one for one in led if one.unknown and one not in close]
        if blind:
            levels = listed([str(one.level) for one in blind], 6)
            made.append(f"How sure its lead is on level {levels} is not known: the scores there have no interval.")
    return made


def _choice(levels: Sequence[LevelScores], models: Sequence[str]) -> tuple[str, str] | None:
    """The model and post-processing of lowest mean rank: ranks averaged within each level, then over levels.

    Only pairs that have every score that anybody has are ranked, so that a hole is no advantage.
    """
    ranks: dict[tuple[str, str], list[list[float]]] = {}
    tables = []
    for level in levels:
        for column in level.columns:
            scores = {
                (one.model, one.post_processing): one.value
                for one in column.contenders
                if one.model in models and not math.isnan(one.value)
            }
            if scores:
                tables.append((level.level, column, scores))
    if not tables:
        return None
    pairs = [pair for pair in tables[0][2] if all(pair in scores for _, _, scores in tables)]
    if len(pairs) < 2:
        return None
    for pair in pairs:
        by_level: dict[int, list[float]] = {}
        for number, column, scores in tables:
            ahead = sum(column.better(scores[other], scores[pair]) for other in pairs)
            same = sum(scores[other] == scores[pair] for other in pairs)
            by_level.setdefault(number, []).append(ahead + (same + 1) / 2)
        ranks[pair] = list(by_level.values())
    return min(pairs, key=lambda pair: sum(sum(part) / len(part) for part in ranks[pair]))
