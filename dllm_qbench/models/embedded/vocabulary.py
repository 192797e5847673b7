"""The words of the embedded models: every word, number and sign is one token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS, BOS, MASK = "<eos>", "<bos>", "<mask>"

FIRST_NAMES = "tom ann bob eva sam ida max joy leo amy kim ben zoe dan mia jon una ray liv".split()
FIRST_NAMES += "abe tia gus nia hal".split()
LAST_NAMES = "reed stone hill wood lake moss frost vale rook dunn marsh cole finch hale".split()
LAST_NAMES += "birch crow ford lane shaw pike".split()
RELATIONS = {
    "pet": "cat dog owl fox hen toad".split(),
    "house": "hut barn tower cabin villa tent".split(),
    "dish": "soup cake stew bread curry pie".split(),
    "tool": "saw axe drill spade rake hammer".split(),
    "boat": "canoe ferry raft yacht kayak tug".split(),
    "coat": "cape parka cloak vest shawl robe".split(),
    "gift": "ring book watch lamp vase clock".split(),
    "song": "waltz hymn ballad march lullaby polka".split(),
}
ADJECTIVES = (
    "red blue green old new tiny huge soft cold warm dark pale loud quiet sweet plain".split()
)
OBJECTS = "apples pears coins stamps cards shells beads nuts plums pens cups keys".split()
GAINS = "buys finds gets".split()
LOSSES = "gives loses eats".split()
OPERATIONS = "add take times atmost atleast mod".split()
_GLUE = (
    "what has now tell the of owns a called for is it largest sort these up sum and away from . ?"
    " how many"
    " write code then first x + - * % ( ) , = # min max"
).split()


def words() -> list[str]:
    """Return every token in id order: specials first, then the numbers 0..99, then words."""
    groups = [
        [EOS, BOS, MASK],
        [str(number) for number in range(100)],
        _GLUE,
        FIRST_NAMES,
        LAST_NAMES,
        list(RELATIONS),
        [noun for nouns in RELATIONS.values() for noun in nouns],
        ADJECTIVES,
        OBJECTS,
        GAINS,
        LOSSES,
        OPERATIONS,
    ]
    return list(dict.fromkeys(word for group in groups for word in group))


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: split at spaces, put ``<bos>`` in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(words())}
    core = Tokenizer(models.WordLevel(ids))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )
