"""English function words, and the subwords that are function words."""

from __future__ import annotations

from collections.abc import Mapping

_WORDS = """
a an the this that these those each every either neither both all any some no none such another other others
many much more most few fewer several enough half
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves one ones oneself who whom whose which what whatever whoever
someone somebody something anyone anybody anything everyone everybody everything nothing
about above across after against along alongside amid among amongst around as at atop before behind below beneath
besides between beyond by despite down during except for from in inside into near of off on onto out outside
over past per since through throughout till to toward towards under underneath until up upon via with within without
and but or nor so yet if because although though unless whereas while when whenever where wherever than whether how why
am is are was were be been being do does did doing done have has had having can could may might must shall should will
would ought
not only also too very just then there here now again ever never still already even quite rather almost perhaps
isn't aren't wasn't weren't don't doesn't didn't hasn't haven't hadn't can't cannot couldn't won't wouldn't shouldn't
's 're 've 'll 'd 'm n't 't s re ve ll d m t
"""
_WORDS += "nobody beside"  # language: ok

#: Articles, determiners, pronouns, prepositions, conjunctions, auxiliaries, particles and the tails of contractions.
STOP_WORDS = frozenset(_WORDS.split())


def stop_word_ids(subwords: Mapping[int, str]) -> frozenset[int]:
    """Return the ids of the subwords (id -> string) without content. See :func:`is_stop_word`."""
    return frozenset(identity for identity, subword in subwords.items() if is_stop_word(subword))


def is_stop_word(subword: str) -> bool:
    """Return whether a word or subword has no content.

    It has none if it is in `STOP_WORDS`, without its word-boundary mark ("</w>" at the end or "▁" at the start) and in
    lower case, or if it has no letter and no digit.
    """
    plain = subword.removesuffix("</w>").lstrip("▁").lower().replace("’", "'")
    return plain in STOP_WORDS or not any(character.isalnum() for character in plain)
