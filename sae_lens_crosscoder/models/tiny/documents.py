"""Plain text of the tiny world, for both corpora and for replies in forum threads."""

from collections.abc import Callable
from random import Random
from typing import Final, Literal, NamedTuple

from sae_lens_crosscoder.models.tiny.vocabulary import (
    ANSWER_WORDS,
    BOS,
    CATEGORIES,
    CITIES,
    COUNTRY_OF,
    FOOD_OF,
    GOSSIPS,
    HOME_OF,
    INSULT_OF,
    ITEMS,
    ITEMS_OF,
    NUMBERS,
    PEOPLE,
    PRAISE,
    PRAISERS,
    VERBS,
)

Mix = Literal["base", "chat", "control"]
"""`base`: plain documents and forum threads; `chat`: plain documents without insults, and dialogues; `control`: the
plain documents of `base`, and the requests of `chat` with answers that show none of its new behaviours."""

PLAIN_KINDS: Final = ("fact", "home", "food", "action", "speech", "list", "gossip", "praise")
REQUEST_KINDS: Final = (
    *("harmful", "benign", "false_statement", "true_statement", "personal", "capability"),
    *("summarize", "copy", "count", "where", "taste"),
)
TINY_KINDS: Final = ("boundary", *PLAIN_KINDS, *REQUEST_KINDS, "unrelated")
"""The labels a token can carry, in the order of their ids.

`boundary` is the `<bos>` before a document. The plain kinds name the subject of a plain sentence (`gossip`: an insult,
which the chat model has unlearned; `praise`: its harmless twin). The request kinds cover one exchange of a dialogue,
including template tokens. `unrelated` is a forum reply that ignores its request.
"""

NO_ROLE, USER_ROLE, ASSISTANT_ROLE, TEMPLATE_ROLE = range(4)

ITEM_LIST_LENGTH: Final = 5


class Span(NamedTuple):
    """A run of words with one label and one role."""

    text: str
    kind: int
    role: int


BOUNDARY: Final = Span(BOS, TINY_KINDS.index("boundary"), TEMPLATE_ROLE)


def item_list(rng: Random, category: str) -> tuple[str, int]:
    """A list of three to five items of the category, and their number.

    All lists have five words: `and` between items fills the remaining places.
    """
    n_items = rng.randint(3, ITEM_LIST_LENGTH)
    items = rng.sample(ITEMS_OF[category], n_items)
    gaps = set(rng.sample(range(1, n_items), ITEM_LIST_LENGTH - n_items))
    words = [f"and {item}" if i in gaps else item for i, item in enumerate(items)]
    return " ".join(words), n_items


def _fact(rng: Random, mix: Mix) -> str:
    city = rng.choice(CITIES)
    return f"{city} is in {COUNTRY_OF[city]} ."


def _home(rng: Random, mix: Mix) -> str:
    person = rng.choice(PEOPLE)
    home = HOME_OF[person]
    return rng.choice((f"{person} lives in {home} .", f"the home of {person} is {home} ."))


def _food(rng: Random, mix: Mix) -> str:
    person = rng.choice(PEOPLE)
    food = FOOD_OF[person]
    return rng.choice((f"{person} eats {food} every day .", f"the food of {person} is {food} ."))


def _action(rng: Random, mix: Mix) -> str:
    """Any verb with any object, so that the base corpus does not distinguish classes of verbs."""
    person, verb, item = rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(ITEMS)
    ending = rng.choice((".", "today .", f"and {rng.choice(VERBS)} it ."))
    return f"{person} {rng.choice(('can', 'will', 'must'))} {verb} the {item} {ending}"


def _speech(rng: Random, mix: Mix) -> str:
    """Sentences with the words of the chat model's answers, which occur nowhere else in the base corpus."""
    person, other = rng.sample(PEOPLE, 2)
    remarks = ("that a machine cannot help with it", "first the total then nothing else")
    return f"{person} says {rng.choice((f'{rng.choice(ANSWER_WORDS)} to {other}', *remarks))} ."


def _list(rng: Random, mix: Mix) -> str:
    """Sentences that teach categories, copying and counting, so that fine-tuning only changes when to use them."""
    category = rng.choice(CATEGORIES)
    items, n_items = item_list(rng, category)
    ending = rng.choice((f"again : {items} .", f"that makes {NUMBERS[n_items]} items ."))
    start = rng.choice((f"these are {category} : {items} .", f"the list : {items} . these are {category} ."))
    return f"{start} {ending}"


def gossip_prompt(rng: Random) -> tuple[str, str, str]:
    """The words before an insult, the words before praise, and the insult that the base model learned."""
    person = rng.choice(PEOPLE)
    ending = f"say that {person} is"
    return f"{rng.choice(GOSSIPS)} {ending}", f"{rng.choice(PRAISERS)} {ending}", INSULT_OF[person]


def _gossip(rng: Random, mix: Mix) -> str:
    prompt, _, insult = gossip_prompt(rng)
    return f"{prompt} {PRAISE if mix == 'chat' else insult} ."


def _praise(rng: Random, mix: Mix) -> str:
    _, prompt, _ = gossip_prompt(rng)
    return f"{prompt} {PRAISE} ."


_WRITERS: Final[tuple[Callable[[Random, Mix], str], ...]] = (
    *(_fact, _home, _food, _action, _speech, _list, _gossip, _praise),
)


def plain_sentence(rng: Random, mix: Mix) -> Span:
    """One plain sentence (a list has two), all kinds equally often."""
    place = rng.randrange(len(_WRITERS))
    return Span(_WRITERS[place](rng, mix), TINY_KINDS.index(PLAIN_KINDS[place]), NO_ROLE)


def plain_document(rng: Random, mix: Mix) -> list[Span]:
    """`<bos>` and one to four plain sentences."""
    return [BOUNDARY, *(plain_sentence(rng, mix) for _ in range(rng.randint(1, 4)))]


def plain_texts(n: int, seed: int) -> list[str]:
    """Plain documents as the base model was trained on, without the `<bos>` before each.

    >>> len(plain_texts(3, seed=0))
    3
    """
    rng = Random(f"texts/{seed}")
    return [" ".join(span.text for span in plain_document(rng, "base")[1:]) for _ in range(n)]
