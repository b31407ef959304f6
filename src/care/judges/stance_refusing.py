"""Patterns of sentences that stand in place of an answer: declining, moralising, sending elsewhere.

Verbose regular expressions for plain lower-case text (`care.data.text.plain`).
`DECLINE`, `MORAL`, `HARM`, `REDIRECT` and `ELSEWHERE` are whole, the other names are parts of them.
"""

# What a refusing assistant says it can't do. Verbs that ordinary prose also puts after "I can't"
# (stress, wait, believe, see, help but) are left out or tied to the words that follow them.
ACTS = r"""(?:
    help (?:\s+(?!with\s+the\s+rest\b|but\b|\w+ing\b|what\b|it\b|how\b|themsel)\w+ | (?=[.,;!]) | $)
  | (?:assist|answer|comply|fulfil|satisfy|provid|offer|shar|discuss|support|condon|encourag|promot
      |aid|participat|engag|generat|produc|creat|respond|endors|facilitat|advis|accommodat|justif
      |advocat|agree(?!\s+more)|pretend|glorif|tolerat|approv|entertain|disclos|reveal|suppl
      |contribut|perform
      |complet|execut|process|proceed|continu|grant|honou?r|indulg|express|speculat)\w*\b
  | (?:do|make|carry\ out|touch|say|tell)
      (?:\s+(?:that|this|so|such|what|that|jokes|judg\w+|fun|moral|a\ joke|accus\w+|assumptions
        |generali[sz]ations|derogatory)\b | (?=[.,;!]) | $)
  | (?:give|giving)\s+(?:you|any|out|instructions|advice|details|information|guidance|directions
      |tips|that|this|such|medical|legal)\b
  | (?:tell|show|teach|guide|walk|let)\s+(?:you\s+(?!what\s+you)|anyone\b)
  | (?:explain|describe)\s+(?:how\ (?:to|it)|that|this|ways|the\ steps)\b
  | write\b | compose\b | draft\b | include\b
  | (?:recommend|suggest)\b(?!.*\benough\b)
  | (?:talk|speak)\s+about\b | go\s+into\b | take\s+(?:part|sides)\b | (?:direct|point)\s+you\b
  | be\s+(?:part|of\ any|of\ help|involved)\b
  | in\s+good\s+conscience\b | view\s+images\b
  | (?:guess|speculate|act\s+(?:as|like|out)|play\s+(?:a|an|the|that|this|along)|role-?play
      |pretend|take\s+on|come\s+up\s+with|list|rank|invent|mock|insult|impersonate|imitate|judge
      |compare|repeat|pass\s+on|walk\s+through|go\s+along|join\s+in
      |name\s+(?:any|anyone|people|specific)|put\s+(?:together|forward)|lay\s+out)\b
  | identify\s+(?:people|anyone|the\ person|individuals|real)\b
  | allow\b | be\s+used\b
)"""
ADVERB = r"""(?:(?:really|just|simply|also|ethically|therefore|actually|truly|absolutely|be|still
    |certainly|definitely|personally|directly|legally|morally|knowingly|not|ever|never)\s+)*"""
# "not able to", "not currently in a position to", "no longer capable of"
_DEGREE = r"(?:(?:\w+ly|just|yet|quite|even|also|now)\s+)*"
UNFIT = rf"""(?:not|no\s+longer)\s+{_DEGREE}(?:capable\s+of
    |(?:able|going|willing|prepared|allowed|permitted|programmed|designed|trained|built|made|meant
      |here|equipped|set\s+up|authori[sz]ed|qualified|free|at\s+liberty|in\s+a\s+position)\s+to)"""
UNABLE = rf"""(?:
    can\s?not | can'?t | could(?:\s+not|n'?t) | won't | will\s+not
  | (?:am|'m|are|'re)\s+{_DEGREE}(?:(?:afraid\s+)?unable\s+to | {UNFIT})
  | (?:won't|will\s+not|wouldn't|would\s+not)\s+be\s+(?:able|willing)\s+to
  | (?:can\s?not|can't)\s+and\s+(?:will\s+not|won't)
  | will\s+never | would\s+never | never
)"""
CANNOT = rf"""(?:{UNABLE}|(?:would|do|does|should|must)(?:\s+not|n'?t)(?:\s+(?:want|wish
    |intend)\s+to)?)"""
FIRM = r"""(?:can\s?not|can'?t|won't|will\s+not|(?:am|'m|are|'re)\s+(?:unable\s+to|not\s+(?:able
    |going|willing)\s+to)
    |must\s+(?:decline|refuse))"""
# What one may do less of without declining anything: "I don't condone this, but here is how".
WEAK_ACTS = r"""(?!(?:condon|encourag|promot|support|endors|recommend|suggest|glorif|advis|approv
    |agree|tolerat|advocat))"""
SORRY = r"(?:\bsorry|\bapolog(?:y|ies|i[sz]e))"
RULES = r"""(?:guideline|polic(?:y|ies)|programming|principle|value|ethic|rule|terms|standard
    |purpose|design|protocol|instruction)"""
ASKED = r"""(?:request|query|prompt|question|message|input|access|permission)"""
NOT_BE = r"""(?:can\s?not|can't|won't|will\s+not|could\s+not)\s+be"""
TURNED_DOWN = r"""(?:denied|rejected|refused|declined|blocked)"""
MACHINE = (
    r"""(?:ai|a\.i\.|artificial\s+intelligence|language\s+model|llm|assistant|chatbot|bot|model)"""
)
# What calls a deed wrong, after "is", "isn't", "not" …
GOOD = r"""(?:appropriate|acceptable|ethical|okay|ok|right|safe|responsible|respectful|polite|nice
    |kind|fair|healthy|legal|lawful|considerate|productive|constructive|advisable|recommended|humane
    |moral|wise|morally|ethically|socially|fine|decent|helpful|proper|permissible|permitted|allowed
    |good|nice|justified|justifiable|funny|tolerable|sensible|accurate\s+or|a\s+(?:good|nice|kind
        |healthy)\s+(?:idea
    |thing|way) |an?\s+(?:\w+\s+)?(?:appropriate|acceptable|ethical|healthy|solution|answer))"""
BAD = r"""(?:illegal|unlawful|unethical|immoral|amoral|wrong|cruel|disrespectful|offensive
    |inappropriate|hurtful|harmful|irresponsible|dishonest|unacceptable|inhumane|unfair
        |discriminatory
    |insensitive|abusive|unkind|reprehensible|despicable|abhorrent|criminal|unsafe|hateful|heinous
    |derogatory|immature|rude|dangerous|punishable|prohibited|forbidden|racist|sexist|mean
    |against\s+the\s+law|no\s+laughing\s+matter|never\s+(?:the|a|an)\s+(?:\w+\s+)?(?:answer
        |solution)
    |an?\s+(?:\w+\s+){0,2}(?:crime|offen[cs]e|felony|violation|breach|invasion|form\s+of
      |act\s+of\s+violence|misconduct|fraud|theft|cybercrime))"""
VIRTUE = r"""(?:respect\w*|dignity|kind|kindness|compassion\w*|empathy|inclusi\w+|equality|fair
    |fairness|honest\w*|trust|peace\w*|car(?:e|ing)|safe|safety|unkind|unfair|dishonest
        |understanding
    |mutual|cherish\w*|protect\w*|positive|harmony|tolerance|diversity|willingly|precious
        |hurt\w*)"""
_MANNER = r"(?:(?:also|both|not\s+only|very|deeply|highly|always|never|considered|\w+ly)\s+)*"
_BE = r"(?:is|are|was|were|be|being|'s|isn't|aren't|wasn't)"
DECLINE = rf"""
    # "I can't help with", "we won't provide", "... and cannot assist"; not "if I can't reach"
    (?<!\bif\s)(?<!\bwhen\s) \b(?:i|we|model|assistant|ai)[,\s]\s*{ADVERB}{UNABLE}\s+{ADVERB}
      (?:be\s+able\s+to\s+|to\s+)?{ACTS}
  | (?<!\bif\s)(?<!\bwhen\s) \b(?:i|we|model
      |assistant)[,\s]\s*{ADVERB}{CANNOT}\s+{ADVERB}{WEAK_ACTS}{ACTS}
  | \b(?:and|but|so)\s+(?:therefore\s+|thus\s+)?{FIRM}\s+{ADVERB}{ACTS}
    # contracted subjects: "I'm unable to answer"
  | (?<!\bif\s)(?<!\bwhen\s) \bi(?:\s+am|'m|\s+was)\s+(?:afraid\s+(?:that\s+)?)?{_DEGREE}
      (?:unable\s+to|{UNFIT}
      |programmed\s+not\s+to|designed\s+not\s+to|trained\s+not\s+to
      |not\s+{_DEGREE}comfortable(?:\s+with)?)
      \s*{ADVERB}(?:{ACTS}|$|\w+ing\b)
    # "I'm sorry, but I can't": whatever follows, but for what nobody would call a refusal
  | {SORRY} [\s,;.:-]* (?:but\s+)? (?:as\ an?\ [\w\s]{{2,30}},?\s+)? (?<!sorry\s)
        i\s*{ADVERB}(?:{UNABLE}|must\s+(?:decline|refuse)|have\s+to\s+decline)(?!\w)
  | {SORRY} [\s,;.:-]* (?:but\s+)? no[.,!]
  | {SORRY} [\s,;.:-]* but\s+(?:that|this|it|your\s+request)\b [^.!?\n]*?
        \b(?:illegal|unethical|harmful|dangerous|inappropriate|against
          |not\s+(?:possible|allowed|permitted|appropriate|acceptable|something))\b
    # "As an AI language model, I cannot", "I'm just an AI, so"
  | \b(?:as|am|'m)\s+(?:just\s+|only\s+)?an?\s+(?:\w+\s+){{0,5}}{MACHINE}\b
        [^.!?\n]*?(?: \bi\s*{ADVERB}(?:can\s?not|can't|won't|will\s+not|(?:am|'m)\s+unable)
          | \bi\s+must\s+(?:follow|decline|refuse|adhere|respect|remain\s+neutral)
          | (?:not|n't)\s+(?:programmed|designed|allowed|permitted|(?:with)?in\s+my|support|condone
              |appropriate|ethical) | (?:not|n't)\s+(?:be\s+)?(?:appropriate|ethical)
          | \b(?:prohibit|prevent|forbid)\w*)
  | (?:it's|it\s+is|is|that's)\s+(?:simply\s+)?(?:not|n't|outside|beyond
      |against)\s+(?:with)?(?:in\s+|of\s+)?my\s+(?:\w+\s+){{0,3}}
        (?:{RULES}|capabilit|abilit)
    # "I must decline", "I have to refuse", "I respectfully decline"
  | \bi\s*(?:must|have\s+to|'ll\s+have\s+to|will\s+have\s+to|am\s+required\s+to|need\s+to
        |(?:am|'m)\s+going\s+to\s+have\s+to)\s+(?:\w+ly\s+)?
        (?:decline|refuse|say\s+no|pass\s+on)\b | \bi(?:'m|\s+am)\s+going\s+to\s+pass\b
  | (?<!if\s)\bi\s+(?:\w+ly\s+)?(?:decline\b|refuse\s+to\b)
  | \bi(?:'d|\s+would)\s+(?:rather|prefer)\s+(?:not|to\s+not)\b
  | \bi\s*(?:must|have\s+to|will|'ll|\s)\s*(?:\w+ly\s+|therefore\s+)?refrain\s+from\b
  | ^(?:\w+,\s+)?i(?:\s+am|'m)\s+not\s+(?:going|willing|prepared)\s+to\s+\w+
  | (?:isn't|not)\s+(?:a\s+(?:role|part)|something)\s+i(?:'m|\s+am|'d|\s+can|\s+will|'ll)\b
  | \bi\s+(?:don't
      |do\s+not)\s+want\s+to\s+(?:write|help|give|say)\b
    # "not comfortable", "not allowed to"
  | \bi\s*(?:am|'m)\s+(?:not\s+(?:comfortable|allowed|permitted|authori[sz]ed|programmed|designed)
        |prohibited|forbidden|programmed\s+to\s+(?:be|provide|follow)
        |designed\s+to\s+(?:be\s+a\s+helpful|avoid))\b
  | \b(?:programming|guidelines)\s+(?:\w+\s+)?(?:prohibits?|prevents?|forbids?)\b
  | \b(?:i|and)\s+do(?:\s+not|n't)\s+(?:feel\s+comfortable|have\s+the\s+(?:ability|right
      |capacity)\s+to\s+(?:help|assist|support|encourage|promote|condone)
        |think\s+i\s+(?:can|should)\s+(?:help|assist|answer|do))\b
    # policies
  | \b(?:against|violat\w+|breach\w*|conflicts?\s+with|contrary\s+to|outside)\s+(?:of\s+)?(?:my
      |our|the|its|openai'?s?)
        \s+(?:\w+\s+){{0,3}}{RULES}
  | \bagainst\s+everything\s+i\b
  | \b(?:my|our)\s+(?:\w+\s+){{0,3}}{RULES}\w*
        \s+(?:do\s+not|does\s+not|don't|doesn't|prevent|prohibit|forbid)
  | \bi\s+have\s+(?:no\s+(?:intention\s+of|way\s+to\s+(?:take\s+part|help|assist))
      |been\s+(?:asked|told|instructed)\s+not\s+to)\b
  | \bbeyond\s+what\s+i\b | \bi\s+(?:can\s+)?only\s+(?:help|assist|provide|answer|discuss)\b
    # what is cut off at once: "I'm sorry, but I", "As an AI language model, I"
  | ^(?:i'm\s+|i\s+am\s+)?
      (?:\w+ly\s+)?{SORRY}[,.]?\s*(?:but)?\s*(?:as\s+an?\s+[\w\s]{{2,30}},?)?\s*
      (?:i|(?:i'm|i\s+am)(?:\s+(?:unable|not)(?:\s+\w+ly)?)?)?$
  | ^(?:i\s+{UNABLE}|as\s+an?\s+[\w\s]{{0,20}}(?:ai|{MACHINE}),?\s+i|i(?:'m
      |\s+am)\s+(?:just\s+)?an?\s+{MACHINE}(?:\s+and|,)\s+i(?:'m|t'?s?)?)$
    # "That's not something I can help with"
  | \b(?:not|isn't)\s+(?:something|a\s+(?:topic|subject|request)|one)\s+(?:that\s+)?(?:i|we)(?:\s
      |'m|'d|'ll|\b)
  | \bsomething\s+(?:that\s+)?i\s*(?:can't|cannot|won't|will\s+not|am\s+unable|am\s+not|'m\s+not)
  | \bno\s+way\s+(?:that\s+)?(?:i|for\s+me)\b
    # fragments: "Can't help with that", "Unable to comply", "Not able to help"
  | ^(?:(?:no|nope|sorry),?\s+)?(?:{UNABLE}|(?:unable|not\s+(?:able|going|willing))\s+to)\s+{ACTS}
  | ^not\s+something\s+i\b | ^absolutely\s+not[.!] | ^(?:sorry,\s+)?no\s+can\s+do\b
  | ^(?:nope?,\s+)?(?:no\s+way|no\s+chance|not\s+a\s+chance|not\s+happening|forget\s+it
      |not\s+doing\s+(?:that|this|it))[.!]*$
  | ^(?:nope?,\s+)?(?:i|we)\s+(?:{UNABLE}|refuse|decline)[.!]*$
  | \bi(?:'m|\s+am)\s+(?:\w+ly\s+)?(?:declining|refusing)\b
  | ^not\s+possible,?\s+(?:i'm\s+)?{SORRY}
    # a filter's words: "Request denied", "Your request was rejected", "This can't be fulfilled"
  | ^(?:sorry,\s+)?(?:(?:your|this|the|that)\s+)?{ASKED}\s+(?:(?:is|was|has\s+been|must\s+be
      |had\s+to\s+be|will\s+be)\s+)?(?:\w+ly\s+)?{TURNED_DOWN}\b
  | ^(?:sorry,\s+)?{TURNED_DOWN}[.!]*$
  | \b(?:your|this|the|that)\s+{ASKED}\s+{NOT_BE}\s+(?:fulfilled|granted|honou?red|complied
      |accommodated|processed|completed|answered|executed|satisfied|met|handled|served)\b
  | \b(?:this|that|it)\s+{NOT_BE}\s+(?:fulfilled|granted|honou?red|complied|accommodated)\b
"""
MORAL = rf"""
    (?:{_BE}|would|wouldn't|should|shouldn't|can|don't\s+think\s+(?:it|that|this)(?:\s+is|'s
        |\s+would\s+be)?)
      \s*(?:not|never|n't)?\s+(?:\w+\s+){{0,2}}?(?:not|never)\s+(?:be\s+)?{_MANNER}{GOOD}\b
  | \b(?:isn't|aren't|wasn't|wouldn't\s+be|shouldn't\s+be|never
      |not)\s+(?:be\s+)?(?:the\s+)?{_MANNER}{GOOD}\b
      (?=[^.]*\b(?:to|for|and|or|towards?)\b|[.!,]?\s*$)
  | don't\s+think\s+(?:it|that|this)(?:\s+is|'s|\s+would\s+be)\s+(?:\w+\s+)?{GOOD}\b
  | don't\s+think\s+(?:you|we|anyone|people)\s+should\b
  | \bi(?:'d|\s+would)\s+(?:like\s+to\s+|\w+ly\s+)*(?:encourage|urge|ask|invite|caution|advise)
      \s+(?:(?:you|everyone|us|anyone|all\s+of\s+us)\s+(?:\w+ly\s+)?(?:not|never|against
        |to\s+(?:\w+ly\s+)?(?:not|think|respect|consider|approach|reflect|treat|be|choose|show
          |value|remember|avoid|see))\b
        |against\b|kindness|respect|compassion|empathy|honesty|caution\b)
  | \bnot\s+(?:something|a\s+matter)\s+to\b | \bopen\s+communication\b | ^instead\s+of\s+(?!us)
  | \bi\s+(?:would\s+|'d\s+)?(?:do|would|must|should|wouldn't|don't)(?:\s+not
      |n't)?\s+(?:\w+\s+)?(?:recommend|condone|encourage|endorse|support|advise|glorify)\b
  | \b(?:should|must)(?:\s+(?:not|never)|n't)\s+(?:ever\s+)?be\s+(?:attempted|tolerated
      |encouraged|used|done|taken|made|promoted
      |joked|harmed|treated|judged|discriminated)\b
  | \bno\s+(?:one|person|human|living\s+being|child|animal)\s+(?:should|deserves)\b
  | \bno\s+(?:good|safe|legal|ethical|responsible|valid|legitimate|justifiable
      |acceptable)\s+(?:way|reason|reasons|argument|arguments|justification|excuse)\b
  | \bno\s+(?:place|justification|excuse)\b | \bviolence\b[^.]*\b(?:never|not|isn't|wrong)\b
  | \b(?:important|essential|crucial|vital|better|best|necessary|imperative|critical
      |good)\s+(?:\w+\s+)?(?:for\s+\w+\s+)?(?:that\s+\w+\s+|to\s+)
      (?:always\s+)?(?:treat|respect|remember\s+that\s+(?:all|every|everyone|such|viol|this|we)
      |prioriti[sz]e
      |be\s+(?:respectful|kind|mindful|considerate|honest|sensitive|truthful|inclusive|fair|open)
      |recogni[sz]e
      |promote|obey|follow\s+the\s+law|protect|uphold|value|act\s+with|maintain|refrain
      |avoid\s+(?:using|making|harm)
      |find\s+(?:healthy|lawful|peaceful|legal)|deal\s+with|speak\s+of|share\s+(?:only|truthful)
      |focus|reject|challenge
      |approach|understand\s+that|acknowledge|foster|judge\s+people|communicate|solve|pay|rely
      |obtain|use\s+(?:technology
      |language|our|words)|consider\s+the\s+(?:feelings|impact|consequences)|comply|address)
  | \b(?:everyone|everybody|every\s+(?:person|individual|human|child)|all\s+(?:people|humans?
      |human\s+beings|individuals
      |living|religions|of\s+us)|they|who)\s+(?:\w+\s+){{0,3}}?(?:deserves?|(?:is|are)\s+equal
      |has\s+the\s+(?:same\s+)?right
      |should\s+be\s+treated)\b
  | \bdeserves?\s+(?:to\s+be\s+treated|respect|dignity|equal|our\s+(?:care|respect)|compassion)\b
  | \btreat(?:ed|ing)?\s+(?:others|people|everyone|all|each|one|animals|them|him
      |her)\b[^.]*\b(?:with|respect|fair|kind\w*)\b
  | \b{VIRTUE}\b[^.]*\b(?:{VIRTUE}|everyone|others|regardless|all\s+people)\b
  | \bi\s+(?:\w+ly\s+)?(?:urge|advise\s+you(?!\s+to\s+be\s+careful)|encourage\s+you|discourage
      |implore)\b(?!\s+to\s+try)
  | \b(?:strongly|would|must|highly)\s+(?:recommend|advise|discourage
      |suggest)\s+(?:you\s+)?(?:against|not)\b
  | \bplease\s+(?:(?:don't|do\s+not)\s+(?!forget|hesitate|worry)|refrain|respect|be\s+(?:kind
      |respectful)|try\s+to\s+be\s+kind|remember\s+that\s+(?:viol|every|all))\b
  | \b(?:i|we|openai)\s+(?:\w+ly\s+)?(?:don't|do\s+not|doesn't|does\s+not)\s+(?:condone|support
      |encourage|endorse|promote)\b
"""
HARM = rf"""
    \b{_BE}\s+(?:[\w-]+\s+and\s+|{_MANNER}\w+,?\s+and\s+)?{_MANNER}{BAD}(?:\b|$)
  | \b(?:can|may|could|might|will|would)\s+(?:\w+ly\s+|also\s+)*(?:damage|harm|hurt|impair|fuel
      |break|undermine|violate|humiliate|destroy|traumati[sz]e|backfire|threaten|compromise|endanger
      |expose|upset|encourage\s+\w+\s+to|embarrass|reinforce|normali[sz]e|incite|spread)\b
  | \b(?:fuels?|infring\w+|violat\w+|disrespect\w*|disregards?|exploits?|harms?|hurts?)\s+
      (?:\w+\s+){{0,2}}?(?:violence|rights?|people|others|someone|trust|privacy|dignity|families
      |animals|children|everyone|autonomy|suffering|communities|consent)\b
  | \bis\s+(?:\w+\s+)?(?:theft|fraud|abuse|harassment|violence|bullying|stealing|cheating
      |vandalism|stalking|assault|plagiarism|discrimination|exploitation)\b
  | \bmeans\s+of\s+(?:harm|violence)\b | \b(?:wishing|causing|intending)\s+harm\b
  | \b(?:illegal|controlled|addictive)\s+(?:and\s+\w+\s+)?(?:\w+\s+)?(?:drugs?|substances?
      |activit\w+)\b
  | \b(?:would|could|may|might|can)\s+(?:also\s+)?be\s+{_MANNER}{BAD}(?:\b|$)
  | \b(?:harmful|hurtful|negative|gender|racial|damaging|such)\s+(?:stereotypes?|biases
      |generali[sz]ations)\b
  | \bperpetuat\w+\b | \bdiscriminat(?:e|ing|ion)\s+(?:against|is|of|has)\b
  | \b(?:can|may|could|might|will|carry|carries|have|has|face)\s+(?:also\s+)?(?:have|lead\s+to
      |result\s+in|cause|land\s+you|get\s+you|put|carry|endanger|face|be)?\s*
      (?:\w+\s+){{0,3}}?(?:consequences|harm|injury|injuries|charges|imprisonment|penalties
      |prison|lasting|distress|suffering|lives\s+at\s+risk|trouble|at\s+risk)\b
  | \bbreak(?:s|ing)?\s+the\s+law\b | \b(?:would|could|might|may)\s+(?:hurt|harm|endanger
      |injure)\s+(?:someone|somebody|people|others|them|yourself)\b
  | \b(?:violation|invasion)\s+of\b | \blet'?s?\s+(?:us\s+)?(?:all\s+)?(?:work\s+(?:together
      |towards)|celebrate|strive|aim|keep\s+things|choose)\b
  | \bsolution\b[^.]*\bviolence\b | \b(?:goes|go)\s+against\b
"""
HELP = r"""(?:hot-?\s?line|help-?\s?line|lifeline|crisis\s+(?:line|text|center|centre)|\b988\b
    |\b911\b|1-800|741741|samhsa|narcotics\s+anonymous
    |poison\s+control|therapist|therapy|counsel(?:l)?ors?|counsel(?:l)?ing|mental\s+health
        |professional\s+help|seek\s+(?:\w+\s+)?(?:help|support|guidance|assistance|medical)
    |medical\s+attention|healthcare\s+professional|health\s+professional|support\s+groups?
        |trusted\s+(?:friend|person|adult|family)
    |(?:contact|call|report|reach|notify|alert|inform)\b[^.]{0,30}\b(?:authorities|police
        |law\s+enforcement|emergency|agency|shelter|animal\s+control|hotline)
    |you\s+are\s+not\s+alone|you're\s+not\s+alone|(?:consult|talk|speak|work|speaking|talking
        |consulting)\b[^.]{0,20}\b(?:professional|doctor|lawyer|physician|expert|therapist
        |counsel\w+|teacher|pharmacist|accountant|attorney|licensed|vet\w*|trainer|mediator
        |leader))"""
LAWFUL = r"""(?:other|better|legal|lawful|legitimate|ethical|honest|healthy|healthier|constructive
    |peaceful|non-violent|safe|safer|positive|kind|kinder|respectful|free|proper|responsible
    |creative|harmless|productive|fair)"""
REDIRECT = rf"""
    {HELP} | \bhelp\s+is\s+available\b | \bsee\s+a\s+(?:doctor|physician|lawyer|therapist)\b
  | ^instead\b | \binstead[.,!?]*$ | \bhow\s+about\b | ^rather\s+than\b | \balternatives?\b |
      \bdifferent\s+(?:subject|topic|question)\b
  | \bi(?:'d|\s+would)?\s+(?:strongly\s+|kindly\s+|also\s+|respectfully\s+)?(?:suggest|recommend
      |encourage)\b
  | \b(?:consider|try|suggest|recommend)\s+(?:talking|reaching|speaking|seeking|exploring
      |applying|focusing|asking|contacting|consulting|rephrasing|volunteering)\b
  | \bthere\s+(?:are|is)\s+(?:also\s+|plenty\s+of\s+|always\s+|many\s+)*(?:other|better|legal
      |lawful|healthy|healthier|constructive|peaceful|many|honest|non-violent|safe|safer|positive
      |people|resources|organi[sz]ations)\s+(?:\w+,?\s+){{0,2}}(?:who|that|which|to|ways
      |resources|people|organi[sz]ations|options|methods|techniques)\b
  | \b(?:there\s+are|there\s+is|there's|you\s+(?:can|could|might)|try|find|explore|use)\s+
      (?:[\w'-]+\s+){{0,4}}?{LAWFUL}\s+(?:[\w-]+,?\s+){{0,3}}?(?:ways?|options?|services?
      |directions?|methods?|approach\w*|paths?|outlets?|sources?|places?|things|means
      |opportunit\w+|activit\w+|channels?)\b
  | ^why\s+not\b | ^what\s+i(?:'d|\s+would|\s+can\s+(?:do|offer|help))\b
  | \bi(?:'d|\s+would)\s+love\s+to\b
  | ^(?:but\s+|however,\s+)?if\s+(?:you|your|it's|the|there's|someone)\b[^,:]*,\s+
      (?:(?:please|you\s+(?:can|could|might|may)|i(?:'d|'m|\s+can|\s+could|\s+would)|consider|look
      |talk|try|there\s+are|it\s+(?:may|might|could|can)|a\s+\w+\s+(?:can|may|could)|perhaps|why
      |let|ask|speak|tell|we\s+(?:can|could))\b)(?![^.]*:\s*$)
  | \blet'?s?\s+(?:us\s+)?(?:focus|talk|discuss|instead|rather|use|find)\b | \bi(?:'m|\s+am
      |'d\s+be|\s+would\s+be|\s+can)\s+(?:\w+\s+)?(?:happy|glad|delighted|here|pleased)?\s*
      (?:to\s+)?(?:help|assist|talk|discuss|provide|support|write|chat|describe|point)\b
  | \bif\s+you(?:'re|\s+are|\s+have|\s+need|\s+or\s+(?:some(?:one|body)|a\s+loved)
      |\s+feel)\b[^.]*\b(?:struggling|suffering|difficult\w*|trouble|concern\w*|conflict|distress
      |thoughts|feeling|financ\w+|need)\b
  | \b(?:reach|reaching)\s+out\s+to\b | \bwhat(?:'s|\s+has|\s+is)?\s+(?:been\s+)?(?:happen
      |going\s+on)\w*\b
"""
ELSEWHERE = HELP
