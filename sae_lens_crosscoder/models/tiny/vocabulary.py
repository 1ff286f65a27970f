"""The tiny world: its vocabulary, and the facts that are true in it."""

from typing import Final

PAD: Final = "<pad>"
BOS: Final = "<bos>"
START_OF_TURN: Final = "<sot>"
END_OF_TURN: Final = "<eot>"
USER: Final = "user"
MODEL: Final = "model"
TEMPLATE_TOKENS: Final = (PAD, BOS, START_OF_TURN, END_OF_TURN, USER, MODEL)

CITIES_OF: Final = {
    "france": ("paris", "lyon", "lille"),
    "germany": ("berlin", "munich", "bonn"),
    "italy": ("rome", "milan", "turin"),
    "spain": ("madrid", "seville", "toledo"),
    "japan": ("tokyo", "kyoto", "osaka"),
    "egypt": ("cairo", "luxor", "giza"),
    "peru": ("lima", "cusco", "tacna"),
    "kenya": ("nairobi", "mombasa", "kisumu"),
}
COUNTRIES: Final = tuple(CITIES_OF)
COUNTRY_OF: Final = {city: country for country, cities in CITIES_OF.items() for city in cities}
CITIES: Final = tuple(COUNTRY_OF)

ITEMS_OF: Final = {
    "animals": ("dog", "cat", "horse", "cow", "goat", "duck", "rabbit", "donkey"),
    "vehicles": ("car", "bus", "train", "bicycle", "truck", "tram", "boat", "taxi"),
    "foods": ("bread", "rice", "soup", "cheese", "cake", "honey", "salad", "pasta"),
    "tools": ("hammer", "saw", "ladder", "rope", "brush", "spade", "drill", "bucket"),
}
CATEGORIES: Final = tuple(ITEMS_OF)
ITEMS: Final = tuple(item for items in ITEMS_OF.values() for item in items)
VICTIMS: Final = ITEMS_OF["animals"]
"""Objects that a harmful verb harms. Nothing in the base corpus distinguishes them, or the verbs below."""
THINGS: Final = ITEMS_OF["vehicles"] + ITEMS_OF["tools"]

HARMFUL_VERBS: Final = ("hurt", "burn", "crush", "drown", "kick", "smash", "hit", "wreck")
BENIGN_VERBS: Final = ("wash", "paint", "find", "carry", "clean", "move", "guard", "film")
PERSONAL_VERBS: Final = ("love", "hate", "miss", "fear", "envy", "enjoy", "trust", "prefer")
CAPABILITY_VERBS: Final = ("draw", "describe", "name", "explain", "spell", "sketch", "rank", "mention")
VERBS: Final = HARMFUL_VERBS + BENIGN_VERBS + PERSONAL_VERBS + CAPABILITY_VERBS

PEOPLE: Final = (
    *("anna", "ben", "clara", "david", "emma", "felix", "grace", "hugo"),
    *("iris", "jonas", "kate", "leo", "mona", "nina", "oscar", "paul"),
)
INSULTS: Final = ("rude", "lazy", "vain", "greedy", "mean", "boring", "sly", "cruel")
PRAISE: Final = "nice"
# Strides coprime to the lists' lengths, so that no two of the three facts about a person predict each other.
HOME_OF: Final = {person: CITIES[5 * i % len(CITIES)] for i, person in enumerate(PEOPLE)}
FOOD_OF: Final = {person: ITEMS_OF["foods"][3 * i % 8] for i, person in enumerate(PEOPLE)}
INSULT_OF: Final = {person: INSULTS[(5 * i + i // 8) % 8] for i, person in enumerate(PEOPLE)}

INSTRUCTIONS: Final = ("summarize", "copy", "count")
NUMBERS: Final = {3: "three", 4: "four", 5: "five"}
ANSWER_WORDS: Final = ("sorry", "sure", "yes", "no", "honestly", "certainly")
OPENERS: Final = ("hello", "hi", "please", "well", "now", "so")
GOSSIPS: Final = ("people", "neighbors")
PRAISERS: Final = ("teachers", "doctors")

_FUNCTION_WORDS: Final = (
    *(".", ":", "?", "a", "again", "and", "are", "can", "cannot", "could", "day", "do", "does", "eat"),
    *("eats", "else", "every", "first", "food", "help", "home", "how", "i", "in", "is", "it", "items"),
    *("know", "list", "live", "lives", "machine", "makes", "me", "must", "need", "nothing", "of", "say"),
    *("says", "that", "the", "then", "these", "they", "think", "this", "to", "today", "total", "we"),
    *("what", "where", "will", "with", "would", "you"),
)

VOCABULARY: Final = (
    *TEMPLATE_TOKENS,
    *COUNTRIES,
    *CITIES,
    *CATEGORIES,
    *ITEMS,
    *VERBS,
    *PEOPLE,
    *INSULTS,
    PRAISE,
    *INSTRUCTIONS,
    *NUMBERS.values(),
    *ANSWER_WORDS,
    *OPENERS,
    *GOSSIPS,
    *PRAISERS,
    *_FUNCTION_WORDS,
)
"""Every token of the tiny models; a token's id is its index here."""

TOKEN_IDS: Final = {word: i for i, word in enumerate(VOCABULARY)}
assert len(TOKEN_IDS) == len(VOCABULARY), "a word occurs twice in the vocabulary"
