"""Words that may stand for each other, for rewriting by rule. A short list of our own."""

_EN = """
also: as well, too | always: at all times, every time | amazing: astonishing, remarkable | ask: request, inquire
asked: requested, inquired | beautiful: lovely, gorgeous | began: started, set out | begin: start, set out
big: large, sizeable | bring: carry, fetch | build: make, put up | built: made, put up | but: yet, however
buy: purchase, get | calm: quiet, peaceful | careful: cautious, attentive | children: kids, youngsters
city: town, metropolis | clear: plain, obvious | come: arrive, turn up | community: neighbourhood, local people
create: make, produce | created: made, produced | day: date, 24 hours | decided: chose, resolved
different: other, unlike | difficult: hard, tough | easy: simple, effortless | enjoy: like, love
enjoyed: liked, loved | ensure: make sure, see to it | every: each, any | explore: discover, look into
family: relatives, household | famous: well known, renowned | feel: sense, notice | felt: sensed, noticed
few: some, a handful of | find: discover, come upon | found: discovered, came upon | friend: companion, pal
friends: companions, pals | give: offer, hand | gave: offered, handed | good: fine, pleasant
great: wonderful, splendid | happy: glad, cheerful | heart: centre, core | help: assist, support
helped: assisted, supported | home: house, place | house: home, building | huge: enormous, vast
idea: thought, notion | important: vital, significant | journey: trip, voyage | joy: delight, happiness
keep: hold, retain | know: understand, realise | large: big, sizeable | learn: discover, find out
learned: discovered, found out | life: existence, living | little: small, tiny | looked: glanced, gazed
loved: adored, cherished | made: created, produced | make: create, produce | many: numerous, plenty of
money: cash, funds | morning: early hours, start of the day | moment: instant, second | more: further, additional
needed: required, wanted | never: at no time, not once | new: fresh, recent | nice: pleasant, agreeable
night: evening, dark hours | often: frequently, many times | old: aged, elderly | only: just, merely
people: folk, persons | perfect: ideal, flawless | quickly: swiftly, fast | quiet: silent, still
ready: prepared, set | really: truly, indeed | sad: unhappy, sorrowful | said: stated, remarked
saw: noticed, spotted | say: state, remark | see: notice, spot | seemed: appeared, looked | simple: plain, easy
small: little, tiny | special: particular, unusual | started: began, set out | stood: was standing, rose
story: tale, account | strange: odd, peculiar | strong: sturdy, powerful | sure: certain, confident
take: grab, get | took: grabbed, got | team: group, crew | thank: express thanks to, be grateful to
think: believe, suppose | told: informed, let know | town: village, place | tried: attempted, made an effort
true: real, genuine | try: attempt, make an effort | understand: grasp, see | use: employ, apply
used: employed, applied | very: extremely, truly | visit: call on, go to | visited: called on, went to
walk: stroll, wander | walked: strolled, wandered | want: wish, would like | wanted: wished, desired
warm: cosy, mild | way: manner, means | went: travelled, headed | wonderful: marvellous, lovely
world: globe, earth | write: compose, put down | wrote: composed, put down | years: seasons, ages
young: youthful, little
"""
_ZH = """
但是: 不过, 然而 | 因为: 由于 | 所以: 因此, 于是 | 非常: 十分, 特别 | 很: 相当, 十分 | 开始: 着手 | 高兴: 开心, 愉快
美丽: 漂亮, 好看 | 觉得: 感到, 认为 | 看见: 看到, 瞧见 | 喜欢: 喜爱, 爱好 | 努力: 用心, 勤奋 | 重要: 要紧, 关键
慢慢: 渐渐, 一点点 | 突然: 忽然, 猛然 | 一直: 始终, 从来 | 朋友: 伙伴, 友人 | 孩子: 小孩, 小朋友
老人: 长者, 老人家 | 常常: 经常, 时常 | 已经: 早已 | 立刻: 马上, 立即 | 希望: 盼望, 期望 | 帮助: 协助, 帮忙
知道: 明白, 晓得 | 地方: 场所, 去处 | 时候: 时刻, 当口 | 认真: 仔细, 用心 | 安静: 宁静, 寂静 | 故事: 经历, 往事
每天: 天天, 日日 | 都: 全, 皆 | 终于: 总算, 到底 | 发现: 察觉, 找到 | 生活: 日子 | 快乐: 欢乐, 愉快 | 温暖: 暖和
可以: 能够 | 需要: 须要, 要 | 家里: 家中 | 路上: 途中 | 许多: 很多, 不少
"""


def _table(text: str) -> dict[str, tuple[str, ...]]:
    entries = (e.partition(":") for line in text.strip().splitlines() for e in line.split("|"))
    return {word.strip(): tuple(o.strip() for o in options.split(",")) for word, _, options in entries}


ENGLISH = _table(_EN)
CHINESE = _table(_ZH)
ENGLISH_LEADS = (
    "In other words", "Put differently", "That is to say", "To say it another way", "What this means is that",
    "Again", "As one might also say", "Simply put",
)  # fmt: skip
CHINESE_LEADS = ("换句话说", "也就是说", "换个说法", "说到底", "再说一遍", "简单来说")
