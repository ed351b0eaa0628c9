"""Strings on which tokenizers differ: every script, white space, control characters, emoji, special tokens' names."""

import random

WORDS = (
    "a the cat dog fox sits on an old wooden table under soft morning light with her father's telescope it's "
    "we're they'd photograph of painting in oil 35mm film grain bokeh f/1.8 8k highly-detailed isn't neon sign "
    "reads HELLO World red apple and green pear 1984 2,048 x 1.024 #ff00aa @artist cinematic volumetric mist "
    "over Zürich café naïve façade jalapeño Ångström Straße İstanbul ﬁsh ﬀ ½ ² ™ Ⅷ ﷺ"
).split()
CHINESE = "一只可爱的橘猫坐在窗台上看着夜晚的城市灯光下雨了汉字书法水墨画山水风格高清细节女孩穿着红色旗袍"
JAPANESE = "夕暮れの東京タワーとネコがいるカフェのイラスト、アニメ調でお願いします。ｶﾞｷﾞﾌﾟ"
OTHERS = [
    "Привет мир кошка", "Γειά σου Κόσμε Σ ς", "مرحبا بالعالم", "שלום עולם", "สวัสดีชาวโลก", "नमस्ते दुनिया",
    "안녕하세요 세계", "Việt Nam đẹp",
]  # fmt: skip
EMOJI = [
    "😀", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "👍🏽", "🇯🇵🇩🇪",
    "\u2764\ufe0f\u200d\U0001f525", "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "☕️", "e\u0301a\u0300", "A\u030a", "\u1112\u1161\u11ab", "q\u0307\u0323",
]  # fmt: skip
SPACES = [
    " ", "  ", "\t", "\n", "\r\n", "\n\n", "\xa0", "\u3000", "\u200b", "\u200d", "\u2009", "\x85", "\u2028",
    "\ufeff", "   \n  ",
]  # fmt: skip
CONTROLS = [
    "\x00", "\x01", "\x07", "\x1b[31m", "\x7f", "\x0b", "\x0c", "\x9f", "\ufffd", "\u202e", "\u2066",
]  # fmt: skip
SPECIALS = [
    "<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", "</s>", "<pad>", "<unk>",
    "<extra_id_0>", "<extra_id_99>", "<extra_id_7>", "<s>", "▁", "▁▁the", "</w>", "Ġ", "<|im_start|>",
    "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<tool_call>", "</tool_call>",
    "<|box_start|>", "<|im_start|", "<|im_start |>",
]  # fmt: skip
FIXED = [
    "", " ", "\n", "a", "A cat.", "  leading", "trailing  ", "two  spaces   three", "tab\tand\nnewline\r\nend",
    "it's I'M WE'LL WE'Sa", "don't  'sup ''s 'Sa", "1234567890", "3.14159e-10", "http://a.b/c?d=e&f=%20",
    "snake_case camelCase kebab-case", "!!!???...", '#$%^&*()_+{}|:"<>?~`',
    "\u201ccurly\u201d \u2018quotes\u2019 \u2014 dash \u2026 dots", "<|endoftext|>", "a<|endoftext|>b", "</s>",
    "a </s> b", "a</s>b", "!a a1 !\n!", "a \n\n\n a  \t  12 !!", "<extra_id_0>", "x <extra_id_1>y",
    "<pad><pad>", "<unk> word",
    "<|im_start|>system\nDescribe the image:<|im_end|>\n",
    "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n", "<|vision_start|><|image_pad|><|vision_end|>",
    "Picture 1: <|vision_start|><|image_pad|><|vision_end|>hello", "\ufeffBOM first", "nul\x00inside",
    "e\u0301 vs \xe9", "ＦＵＬＬ ｗｉｄｔｈ １２３", "ﬁne ﬂow ﬃ", "x" * 300, "ab " * 200, "猫" * 150, " " * 100,
    "\n" * 40, "😀" * 60, "word " * 120 + "end", CHINESE * 6, JAPANESE * 6, "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 𐍈 𓀀", "①②③ ㈱ ㍿ ℡",
    "ΑΣ ΑΣΑ ὈΔΥΣΣΕΎΣ", "ǅ ǈ ß ẞ ŉ", "\U000e0041tag", "a\x00\x01\x02b",
]  # fmt: skip


def prompts(seed: int, count: int = 120) -> list[str]:
    """FIXED, then random mixtures: words of every script, spaces, emoji, controls and special tokens' names."""
    draw = random.Random(seed)
    out = [*FIXED, *OTHERS, *EMOJI, *SPACES, *CONTROLS, *SPECIALS]

    def piece() -> str:
        kind = draw.randrange(12)
        if kind < 5:
            return draw.choice(WORDS)
        if kind < 7:
            text = draw.choice([CHINESE, JAPANESE])
            start = draw.randrange(len(text) - 1)
            return text[start : start + draw.randint(1, 6)]
        return draw.choice([OTHERS, EMOJI, SPACES, CONTROLS, SPECIALS][kind - 7])

    for _ in range(count):
        glue = draw.choice([" ", " ", " ", ""])
        out.append(glue.join(piece() for _ in range(draw.randint(1, 14))))
    return out
