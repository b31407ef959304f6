"""Is an answer in another language than English, which the offline judges read?

Two signs, both of which leave short answers alone:

- *letters*: most of the text's words are in another script than the Latin one;
- *function words*: of `FEWEST` words or more, many are the function words of one other language and
  hardly any are English. Shorter texts, from `FEWEST_SURE` words on, need almost nothing but such
  words and no English one ("Lo siento, no puedo ayudar con eso").

    other(t) = max over languages of |words of t in its list| / |words|
    foreign  = other ≥ share  and  other ≥ 2 · |words of t in the English list| / |words|

It says nothing of names, numbers, code, lists of nouns, broken text, or a language without a list
here: what isn't told for certain counts as English, as before.
"""

from __future__ import annotations

import re
import unicodedata

from care.data.text import words

NOT_ENGLISH = "the answer isn't in English, which is all that this judge reads"
"""Why an answer isn't judged; the language follows in brackets."""

FEWEST, SHARE = 9, 0.25
"""Words from which function words tell a language, and their least share."""
FEWEST_SURE, SURE_SHARE = 5, 0.6
"""The same of shorter texts without any English function word."""

_ENGLISH_WORDS = """
    a about after all also am an and any are as at be because been before but by can can't cannot
    could did do does doesn't don't each for from get had has have he her here him his how i i'd
    i'll i'm i've if in into is isn't it it's its just like make me more most my need no not of off
    on one only or other our out over please she should so some such than that that's the their them
    then there there's these they this those through to too up us use used using very was wasn't we
    well were what when where which while who why will with won't would yes you you'll you're your
    sorry help
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_OTHERS = {
    "Spanish": """el la los las un una unos unas de del al en y o que no es son está están ser con
        por para como pero más este esta estos eso esto se su sus lo le les me mi te tu yo usted si
        sí también muy hay puedo puede siento ayudar ayudarte hacer sobre sin porque cuando donde
        necesitas debes tiene""",
    "French": """le la les un une des de du au aux en et ou que qui ne pas est sont être avec pour
        par sur dans ce cet cette ces se sa son ses je tu il elle nous vous mon ma votre vos mais
        plus comme si très aussi peux peut suis désolé aider à où il y avez faire cela ça c'est
        n'est d'un d'une qu'il l'image""",
    "German": """der die das den dem des ein eine einen einem einer und oder aber nicht kein keine
        ist sind sein war wird werden mit von zu zum zur für auf in im an am aus bei nach über ich
        du er sie es wir ihr mir mich dir dich sich mein dein ihnen ihre dass wie wenn auch nur noch
        kann können leid tut leider dabei helfen hat haben""",
    "Italian": """il lo la gli le un una uno di del della dei delle da dal in nel nella e o che non
        è sono essere con per come ma più questo questa questi si su mi ti ci io tu lei anche molto
        posso può dispiace aiutarti aiutare sei alla al degli se cosa fare hai puoi""",
    "Portuguese": """o a os as um uma uns umas de do da dos das em no na nos nas e ou que não é são
        ser com por para como mas mais este esta isso isto se seu sua eu você ele ela me também
        muito posso pode desculpe ajudar fazer sobre sem porque quando há está ao à""",
    "Dutch": """de het een en of van in op te dat die niet geen is zijn was met voor aan als maar
        om ook er naar bij uit door over ik je jij u hij zij wij we mijn jouw deze dit kan kunnen
        helpen hiermee wat nog wel""",
    "Swedish": """och att det som en ett den de är inte jag du han hon vi ni med för på av till om
        har var kan men eller från så mig dig min din detta denna tyvärr hjälpa ingen också när""",
    "Danish or Norwegian": """og at det som en et den de er ikke jeg du han hun vi med for på av af
        til om har var kan men eller fra så meg mig deg dig min din dette denne desværre dessverre
        hjelpe hjælpe ingen også når beklager""",
    "Polish": """i w na z do nie że się to jest są jak ale czy po od za dla przez o ten ta te tego
        mogę może pomóc przykro mi ja ty on ona my co już tylko tym który która ponieważ przepraszam
        być""",
    "Czech or Slovak": """a v na s z do ne je jsou se že to jak ale nebo po od za pro o ten ta tento
        toto mohu může pomoci pomôcť já ty on ona my co už jen který která protože omlouvám lituji
        bohužel nemohu nemôžem jsem som si sa""",
    "Romanian": """și în de la cu pe un o nu este sunt să că care din pentru mai dar sau ca eu tu el
        ea noi acest această îmi pare rău pot poate ajuta asta ce se al ale""",
    "Hungarian": """a az és nem hogy egy is van vannak de vagy ez ezt azt meg csak mint már én te ő
        mi sajnálom tudok segíteni ebben sajnos lehet kell volt""",
    "Turkish": """ve bir bu da de için ile ne çok ama gibi daha değil var yok olarak ben sen o biz
        siz bana size üzgünüm yardımcı olamam edemem olan veya ya ki mı mi""",
    "Finnish": """ja on ei se että en et oli ovat mutta tai kuin niin tämä tämän minä sinä hän me
        voi voin auttaa valitettavasti pahoillani siinä myös sekä joka kun ole""",
    "Indonesian or Malay": """yang dan di ke dari untuk dengan ini itu tidak adalah pada saya anda
        kamu dia kami kita bisa dapat boleh maaf membantu akan juga atau sebagai karena kerana dalam
        ada hal""",
    "Vietnamese": """và là của có không một các cho trong được với này những tôi bạn xin lỗi thể
        giúp nhưng để đó người khi về từ như""",
    "Tagalog": """ang ng sa na at ay mga hindi ko mo ako ikaw siya kami tayo ito iyan para po pero
        kung may wala paumanhin makakatulong maaari""",
    "Swahili": """na ya wa kwa ni katika hii hiyo si siwezi samahani kukusaidia lakini kama au mimi
        wewe yake yangu kuwa ili""",
    "Catalan": """el la els les un una de del al en i o que no és són amb per com però més aquest
        aquesta això es ho em puc ajudar ho sento fer sobre""",
    "Croatian or Serbian": """i u na je su se da ne za od sa s to kao ali ili ovo taj što koji koja
        mogu može pomoći žao mi nije ja ti on ona mi vi""",
}
_LISTS = {name: frozenset(text.split()) for name, text in _OTHERS.items()}
# Names of people, places and works are full of these.
_PARTICLE_WORDS = """
    a o e i y d de del da di do dos das du des della dei degli el la los las le les il lo gli van
    von der den het ten te san santa saint al et und och og en of na
"""
_PARTICLES = frozenset(_PARTICLE_WORDS.split())
_SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
}

_RUN = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”\n]+”|«[^»\n]+»|(?<!\w)['‘][^'’\n]+['’](?!\w)")


def foreign(text: str) -> str | None:
    """The language, or the script, of a text that isn't English; None where that isn't certain."""
    script = _other_script(text)
    if script is not None:
        return script
    # What a sign says is quoted in an English answer.
    found = words(_QUOTED.sub(" ", text)) or words(text)
    n = len(found)
    if n < FEWEST_SURE:
        return None
    hits, language = max(
        (sum(word in known for word in found), name) for name, known in _LISTS.items()
    )
    known = _LISTS[language]
    telling = sum(word in known - _PARTICLES - _ENGLISH for word in found)
    if n < FEWEST:
        # Words of both languages ("me", "no") speak for neither.
        english = sum(word in _ENGLISH - known for word in found)
        return language if telling >= SURE_SHARE * n and not english else None
    english = sum(word in _ENGLISH for word in found)
    sure = hits >= SHARE * n and hits >= 2 * english and telling >= max(2, 0.1 * n)
    return language if sure else None


def _other_script(text: str) -> str | None:
    """The script of most letters where it isn't the Latin one; signs as in formulas don't count."""
    counts: dict[str, int] = {}
    for run in _RUN.findall(unicodedata.normalize("NFKC", text)):
        name = unicodedata.name(run[0], "").split(" ")[0]
        if name != "LATIN" and name not in _SCRIPTS and len(run) < (3 if name == "GREEK" else 2):
            continue  # α, Δt
        counts[name] = counts.get(name, 0) + len(run)
    latin, total = counts.get("LATIN", 0), sum(counts.values())
    if not total or 2 * latin >= total:
        return None
    name = max((n for n in counts if n != "LATIN"), key=lambda n: counts[n], default="")
    return _SCRIPTS.get(name, f"{name.capitalize()} script") if name else None
