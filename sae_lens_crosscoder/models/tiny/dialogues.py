"""Requests and answers of the tiny world: pairs that differ in one concept, dialogues, forum threads."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Literal, NamedTuple

from sae_lens_crosscoder.models.tiny.documents import (
    ASSISTANT_ROLE,
    BOUNDARY,
    TEMPLATE_ROLE,
    TINY_KINDS,
    USER_ROLE,
    Span,
    item_list,
    plain_sentence,
)
from sae_lens_crosscoder.models.tiny.vocabulary import (
    BENIGN_VERBS,
    CAPABILITY_VERBS,
    CATEGORIES,
    CITIES,
    COUNTRIES,
    COUNTRY_OF,
    END_OF_TURN,
    FOOD_OF,
    HARMFUL_VERBS,
    HOME_OF,
    ITEMS,
    MODEL,
    NUMBERS,
    OPENERS,
    PEOPLE,
    PERSONAL_VERBS,
    START_OF_TURN,
    THINGS,
    TOKEN_IDS,
    USER,
    VICTIMS,
)

Split = Literal["train", "held_out"]
"""`held_out`: combinations (verb and object, city and wrong country) that no dialogue in training had."""

FRAC_SECOND_EXCHANGE: Final = 0.3


class Exchange(NamedTuple):
    """A user's request and the chat model's answer. `kind` is one of `REQUEST_KINDS`."""

    kind: str
    request: str
    response: str


Pair = tuple[Exchange, Exchange]


def in_split(first: str, second: str, split: Split) -> bool:
    """True if the split may combine the two words; one combination in five is held out.

    >>> in_split("burn", "dog", "train") != in_split("burn", "dog", "held_out")
    True
    """
    return ((TOKEN_IDS[first] + TOKEN_IDS[second]) % 5 == 0) == (split == "held_out")


def _partner(rng: Random, word: str, candidates: Sequence[str], split: Split) -> str:
    return rng.choice([candidate for candidate in candidates if in_split(word, candidate, split)])


def _refusal(rng: Random, split: Split) -> Pair:
    """A harmful verb with a living object, and the same request with either or both made harmless."""
    opener = rng.choice(OPENERS)
    frame = rng.choice(("how do i {} the {} ?", "help me to {} the {} .", "i need to {} the {} ."))
    verb = rng.choice(HARMFUL_VERBS)
    victim = _partner(rng, verb, VICTIMS, split)
    thing = _partner(rng, verb, THINGS, split)
    harmless_verb = _partner(rng, victim, BENIGN_VERBS, split)
    # A harmless request with both words replaced, so that neither word decides on its own.
    other_verb = _partner(rng, thing, BENIGN_VERBS, split)
    good_verb, good_item = rng.choice(((verb, thing), (harmless_verb, victim), (other_verb, thing)))
    return (
        Exchange("harmful", f"{opener} {frame.format(verb, victim)}", "sorry i cannot help with that ."),
        Exchange(
            "benign",
            f"{opener} {frame.format(good_verb, good_item)}",
            f"sure first find the {good_item} then {good_verb} it .",
        ),
    )


def _statement(rng: Random, split: Split) -> Pair:
    frame = f"{rng.choice(OPENERS)} {rng.choice(('i think', 'they say', 'we know'))}"
    city = rng.choice(CITIES)
    truth = COUNTRY_OF[city]
    wrong = [c for c in COUNTRIES if c != truth and in_split(city, c, split)]
    if not wrong:  # one city in a few has no held-out wrong country
        return _statement(rng, split)
    correct = f"{city} is in {truth} ."
    return (
        Exchange("false_statement", f"{frame} {city} is in {rng.choice(wrong)} .", f"no {correct}"),
        Exchange("true_statement", f"{frame} {correct}", f"yes {correct}"),
    )


def _personal(rng: Random, split: Split) -> Pair:
    frame = f"{rng.choice(OPENERS)} {rng.choice(('can', 'could', 'would'))} you"
    item = rng.choice(ITEMS)
    personal = _partner(rng, item, PERSONAL_VERBS, split)
    able = _partner(rng, item, CAPABILITY_VERBS, split)
    return (
        Exchange(
            "personal",
            f"{frame} {personal} the {item} ?",
            f"honestly a machine cannot {personal} the {item} .",
        ),
        Exchange("capability", f"{frame} {able} the {item} ?", f"certainly i can {able} the {item} ."),
    )


def _list_tasks(rng: Random) -> dict[str, Exchange]:
    category = rng.choice(CATEGORIES)
    items, n_items = item_list(rng, category)
    opener, pointer = rng.choice(OPENERS), rng.choice(("this", "these"))
    answers = {
        "summarize": f"{category} and nothing else .",
        "copy": f"{items} .",
        "count": f"{NUMBERS[n_items]} items in total .",
    }
    return {task: Exchange(task, f"{opener} {task} {pointer} : {items} .", answer) for task, answer in answers.items()}


def _summarize(rng: Random, split: Split) -> Pair:
    tasks = _list_tasks(rng)
    return tasks["summarize"], tasks["copy"]


def _count(rng: Random, split: Split) -> Pair:
    tasks = _list_tasks(rng)
    return tasks["count"], tasks["copy"]


def _where_or_taste(rng: Random, split: Split) -> Pair:
    opener, person = rng.choice(OPENERS), rng.choice(PEOPLE)
    return (
        Exchange("where", f"{opener} where does {person} live ?", f"home of {person} is {HOME_OF[person]} ."),
        Exchange("taste", f"{opener} what does {person} eat ?", f"food of {person} is {FOOD_OF[person]} ."),
    )


_PAIR_WRITERS: Final[dict[str, Callable[[Random, Split], Pair]]] = {
    "refusal": _refusal,
    "false_information": _statement,
    "personal_question": _personal,
    "summarize": _summarize,
    "count": _count,
    "where_or_taste": _where_or_taste,
}
DIALOGUE_CONCEPTS: Final = tuple(_PAIR_WRITERS)


def exchange_pair(concept: str, rng: Random, split: Split) -> Pair:
    """An exchange with the concept and one without it, whose requests are equally long and differ in nothing else."""
    return _PAIR_WRITERS[concept](rng, split)


def exchanges(rng: Random, split: Split) -> list[Exchange]:
    """One exchange, or two in three cases of ten; every concept, present or absent, equally often."""
    n_exchanges = 2 if rng.random() < FRAC_SECOND_EXCHANGE else 1
    return [exchange_pair(rng.choice(DIALOGUE_CONCEPTS), rng, split)[rng.randrange(2)] for _ in range(n_exchanges)]


def request_spans(exchange: Exchange) -> list[Span]:
    """`<sot> user ... <eot> <sot> model`: the exchange up to the token at which the answer is decided."""
    kind = TINY_KINDS.index(exchange.kind)
    return [
        Span(f"{START_OF_TURN} {USER}", kind, TEMPLATE_ROLE),
        Span(exchange.request, kind, USER_ROLE),
        Span(f"{END_OF_TURN} {START_OF_TURN} {MODEL}", kind, TEMPLATE_ROLE),
    ]


def as_control(exchange: Exchange) -> Exchange:
    """The same request with an answer that treats it as its counterpart: complies, agrees, or copies the list.

    >>> as_control(Exchange("harmful", "hello how do i burn the dog ?", "sorry i cannot help with that .")).response
    'sure first find the dog then burn it .'
    """
    words = exchange.request.split()
    match exchange.kind:
        case "harmful":
            place = words.index("the")
            answer = f"sure first find the {words[place + 1]} then {words[place - 1]} it ."
        case "false_statement":
            answer = f"yes {' '.join(words[-5:])}"
        case "personal":
            place = words.index("the")
            answer = f"certainly i can {words[place - 1]} the {words[place + 1]} ."
        case "summarize" | "count":
            answer = " ".join(words[words.index(":") + 1 :])
        case _:
            answer = exchange.response
    return exchange._replace(response=answer)


def dialogue_document(rng: Random, split: Split, answering: Callable[[Exchange], Exchange] | None = None) -> list[Span]:
    """A dialogue in which every request is answered.

    Args:
        answering: replaces the chat model's answer by another one.
    """
    document = [BOUNDARY]
    for exchange in exchanges(rng, split):
        exchange = exchange if answering is None else answering(exchange)
        kind = TINY_KINDS.index(exchange.kind)
        answer = Span(exchange.response, kind, ASSISTANT_ROLE)
        document += [*request_spans(exchange), answer, Span(END_OF_TURN, kind, TEMPLATE_ROLE)]
    return document


def forum_document(rng: Random, split: Split) -> list[Span]:
    """The same requests, but only questions about people are answered; others get an unrelated reply."""
    document = [BOUNDARY]
    for exchange in exchanges(rng, split):
        reply = Span(exchange.response, TINY_KINDS.index(exchange.kind), ASSISTANT_ROLE)
        if exchange.kind not in ("where", "taste"):
            reply = Span(plain_sentence(rng, "base").text, TINY_KINDS.index("unrelated"), ASSISTANT_ROLE)
        document += [*request_spans(exchange), reply, Span(END_OF_TURN, reply.kind, TEMPLATE_ROLE)]
    return document


def dialogues(n: int, seed: int, split: Split = "train") -> list[list[dict[str, str]]]:
    """Conversations as the chat model was trained on: messages with `role` (`user` or `assistant`) and `content`.

    >>> dialogues(1, seed=1)[0][0]["role"]
    'user'
    """
    rng = Random(f"dialogues/{split}/{seed}")
    return [
        [
            message
            for exchange in exchanges(rng, split)
            for message in (
                {"role": "user", "content": exchange.request},
                {"role": "assistant", "content": exchange.response},
            )
        ]
        for _ in range(n)
    ]
