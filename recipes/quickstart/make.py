"""Make the quickstart: a tiny pretrained Llama, its tokenizer, and a fine-tuning task.

Everything comes from text that this script writes itself with a seeded grammar: a small world of
people and animals, places, foods, colours and little events. Nothing is taken from elsewhere.

    python recipes/quickstart/make.py --seed 0

It writes, under ``--output``:

* ``model/``: a LlamaForCausalLM in bfloat16 with its byte-level BPE tokenizer, pretrained on the
  stories (the stories themselves are not kept);
* ``data/train.jsonl`` and ``data/test.jsonl`` (held out): "write a story with these words" in
  TRL's prompt/completion format, four completions to each key (who, where, what); no key is in
  both files.

Measured: 487 s on two busy CPU cores; loss on unseen stories 0.586 nats per token. Two runs with
the same seed, tiny settings, same machine and versions: byte-identical files.
"""

import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB_SIZE = 1536
BLOCK = 256  # tokens per pretraining row
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'Story:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Story:' }}{% endif %}"
)


def split(text: str, at: str = "[;\n]") -> list[str]:
    """Splits text at a pattern and leaves out what is empty."""
    return [part for part in re.split(at, text) if part]


# The world. In a template, [a|b] is a choice (choices nest) and {x} is filled from the cast.
SHE = split("Mara Ines Tilda Nell Rosa Wren Hanna Lena Ada Juno Clara Petra", " ")
HE = split("Oskar Tomas Bram Felix Hugo Pim Otto Ivo Emil Jonas Kasper Theo", " ")
KINDS = split(
    "baker;miller;fisher;gardener;weaver;painter;sailor;potter;shepherd;tailor;clockmaker;"
    "beekeeper;carpenter;fiddler;fox;hare;badger;otter;crow;goose;mouse;cat;goat;owl;hedgehog;donkey"
)
PLACES = split(
    "at the harbour;in the forest;by the river;in the orchard;on the hill;at the market;"
    "in the barn;by the old mill;under the bridge;in the meadow;at the lighthouse;on the beach;"
    "in the garden;by the well;in the valley;at the station"
)
COLOURS = split("red blue green yellow white silver purple orange brown golden", " ")
THINGS = split("kite lantern scarf basket kettle drum hat umbrella key bell blanket ribbon", " ")
FOODS = split(
    "warm bread;plum cake;onion soup;honey toast;apple pie;pear jam;goat cheese;blackberry tart;"
    "ginger biscuits;hot chestnuts;pancakes;mushroom stew;cherry buns;roast apples"
)
WEATHERS = split("cold bright windy rainy foggy warm quiet grey snowy golden", " ")
TIMES = split("morning afternoon evening day", " ")
INNERMOST = re.compile(r"\[([^\[\]]*)\]")

OPENINGS = split("""
{name} was a {kind} who lived [near|not far from|just behind] {place}.
There was once a {kind} called {name}, who [lived|had a small house] near {place}.
[Everyone near {place} knew|People still tell stories about] {name} the {kind}.
One {weather} {time}, {name} the {kind} was [sitting|resting|working|humming a tune] {at}.
{name} the {kind} and {friend} the {fkind} were [old friends|neighbours|the best of friends].
It was a {weather} {time}, and {name} the {kind} had [nothing to do|a lot to do|just woken up].
This is a story about a {colour} {thing}, a {kind} called {name}, and {place}.
Let me tell you about {name} the {kind}, about {place}, and about a {colour} {thing}.
""")
PLOTS = split("""
{name} sat down and ate some {food}. A [crow|duck|small dog] came near and looked at {him}, so {he} [shared the last bit|gave it a crumb]. [The next day it came back with two friends|After that it followed {him} everywhere].
The wind took {name}'s {colour} {thing} and carried it over {place}. {friend} the {fkind} [caught it|climbed up to get it], so {name} [made some {food} for {fhim}|thanked {fhim} twice].
{name} could not sleep, because the moon was [too bright|so round]. {he} [walked about|counted the stars|hummed a tune], and {at2} {he} met {friend} the {fkind}, who was awake too. They [talked|sat without a word|shared some {food}] until the sun rose.
{name} had a {colour} {thing} that {he} [loved more than anything|took everywhere|never lent to anyone]. Then it was [gone|missing|nowhere to be found]. {name} looked [under the bed|behind the stove|in every drawer] and [along the path|under the bench|in the long grass], but [found nothing|it was not there|saw only dust]. [At last|Before long] {friend} the {fkind} [came by|knocked on the door|called from the gate] and said, "I saw something {colour} {at}." They [went there together|ran all the way], and there lay the {thing}, [wet but not broken|half hidden under the leaves|shining in the sun].
[Dark clouds came|The sky turned black|Thunder rolled] over {place}, and soon it [began to rain|was pouring]. {name} had no {cover}, so {his} [coat|shoes|sleeves] got wet and {he} began to [shiver|sneeze]. {friend} the {fkind} saw {him} and [held up|brought out|shared] a {colour} {cover}. "[Come under|There is room for two|You are soaked]," said {friend}. They [walked slowly|waited together|laughed] until the rain stopped. [|Because {name} was still cold, they ate some {food} by the fire.]
{name} was [very hungry|so hungry that {his} stomach growled], because {he} had [eaten nothing since dawn|given {his} breakfast to a stranger|forgotten {his} lunch]. {he} [smelled|noticed] some {food} {at}, and {friend} the {fkind} was [cooking|sitting beside it|counting the plates]. "[May I have a little?|Is there enough for two?|That smells wonderful,]" {name} said [|shyly|softly]. "[Only if you tell me a story|Take half|Sit down and eat]," {friend} [answered|said]. So they ate [slowly|until nothing was left|and talked until dark], and {name} was not hungry any more.
{name} wanted to make some {food} for [the festival|{friend}|the whole village]. {he} [mixed and stirred|sang while {he} cooked|lit the stove], but then {he} [fell asleep|went out to look at the moon|began to read a book]. [Smoke filled the kitchen|Soon the kitchen was full of smoke], and the {food} [burned black|turned to coal]. {name} [sat down and cried|was ashamed|sighed]. {friend} the {fkind} [opened the window|laughed kindly|rolled up {fhis} sleeves] and said, "[Let us try again|I will help you|Nobody is perfect]." The second try was [even better|perfect|a little crooked, but it tasted good].
{name} had borrowed a {colour} {thing} from {friend} the {fkind}. {he} was [careless|in a hurry|thinking of something else], so {he} dropped it {at} and it broke. {name} [was afraid to tell|could not sleep that night|hid the pieces in a sack]. [In the end|The next day] {he} [told the truth|went to {friend} and said sorry]. "[I was angry for a moment|It was old anyway|Thank you for telling me]," said {friend}, "[but|and] we can mend it." They used [glue and string|thread and patience|nails and wire], and the {thing} was [almost as good as new|stronger than before|a bit ugly, but they liked it].
One night {name} heard a [strange|soft|terrible] noise {at}. It went [tap, tap, tap|scratch, scratch|hoo, hoo]. {name} [hid under the blanket|could not sleep|held {his} breath], because {he} thought it was a [ghost|thief|wolf]. [At last|After a while] {he} took a {colour} lantern and went to look. It was only {friend} the {fkind}, who [was mending a {thing}|was looking for some {food}|had lost {fhis} key]. They both [laughed|felt silly|jumped, and then laughed], and {name} slept well after that.
{name} planted a [small|round|wrinkled] seed {at}. [Every morning|Every evening] {he} gave it water[| and sang to it| and told it the news]. For [ten days|three weeks|a long time] nothing happened, and {friend} the {fkind} said, "[That is only a stone|You must wait|Perhaps it is asleep]." Then, after a {weather} night, there was a [green shoot|tiny leaf]. By the end of summer it was a [tree full of {colour} [pears|plums|apples]|{colour} flower taller than {friend}]. {name} [smiled every time {he} passed|gave the first one to {friend}|saved the seeds for next year].
{name} and {friend} decided to race from {place} to [the church|the big oak|the crossroads]. {name} was [faster|very quick], so {he} [stopped to rest|stopped to eat some {food}|took a nap] on the way. {friend} was [slow|not so fast], but {fhe} [never stopped|kept going]. When {name} looked up, {friend} was already [at the finish|waving from the end]. "[How did you do that?|You won!|I do not believe it,]" said {name}. "[One step at a time|I only kept walking|You were kind to wait]," said {friend}. The prize was a {colour} {thing}.
Snow fell [all night|for three days], and the road to {place} was [closed|white and silent]. Somebody knocked at the door of {name}'s house. It was {friend} the {fkind}, who was [half frozen|lost|too tired to speak]. {name} put a {colour} blanket around {fhim} and [warmed some {food}|made tea|put more wood on the fire]. Because the storm was [long|wild], {friend} stayed [two nights|a week|until spring]. When {fhe} left, {fhe} [gave {name} a {colour2} {thing}|promised to write|had become a friend].
{name} built a small {colour} boat and [put it on the river|rowed out from the shore]. The water was [calm|fast|deep and green], and {he} [forgot the time|sang loudly|felt brave]. Then the boat hit a [rock|log], and water came in through a hole. "Help!" cried {name}. {friend} the {fkind} [threw a rope|swam out|pushed a plank into the water] and pulled {him} to the bank. {name} was [wet|muddy], but {he} was safe. After that {he} always [carried a rope|looked ahead|took {friend} along].
{name} wanted to paint {his} door {colour}, but {friend} the {fkind} said {colour2} was [better|more cheerful|the only good colour]. They [argued|shouted|did not speak] [all day|until the cows came home]. While they argued, [the wind knocked over the pots|a goat knocked over the pots|it began to rain], and the paint [ran together|spilled on the step]. The door became [half {colour} and half {colour2}|{colour} with {colour2} spots]. [Everyone who passed|The whole village] said it was the finest door near {place}. {name} and {friend} [shook hands|said it had been their plan|agreed at last].
It was {friend}'s birthday, and {name} had no [money|present]. {he} walked to {place} and [picked flowers|gathered shells|found a smooth stone], and tied a {colour} ribbon around [it all|the bundle]. {friend} the {fkind} [opened it slowly|did not say a word|clapped]. "[Nobody ever gave me such a thing,|This is the best present of all,|How did you know?]" {fhe} said. They ate some {food} and [danced|played cards|looked at the stars] until [midnight|the candles went out].
[Later|One day] {name} went to the market and swapped {his} {colour} {thing} for some {food}. Then {he} swapped the {food} for a [hen|hammer|pair of boots], and the [last|very last] thing {he} got was a {colour2} button. [Everybody laughed at {him}|"You have lost everything," said a man]. But {friend} the {fkind} had [lost just such a button|looked for that button for years]. {friend} was so [glad|thankful] that {fhe} gave {name} [a whole cart of hay|a place at {fhis} table|the old house {at}]. [So a button can be worth a house|You never can tell].
{name} found a letter {at}, but the rain had washed away [the name|half of the words]. It said, "[Meet me|I wait for you|Come] {at2}, and bring some {food}." {name} was [curious|a little afraid], so {he} went. There {he} met {friend} the {fkind}, who had [written it long ago|thrown it to the wind|been waiting since noon]. "[Was the letter for me?|I am not the one you wanted,|Here I am,]" said {name}. "[It is now|Whoever reads it is welcome|You brought the food, so sit down]," said {friend}.
{name}'s cart was stuck in the mud {at}. {he} [pushed|pulled|shouted at it], but the wheels [would not turn|only sank deeper]. {friend} the {fkind} [pulled too|pushed from behind], and [it did not help|nothing moved]. Then a [tiny mouse|small child|thin old sparrow] came along and [pulled as well|gave one more push]. [With a great sound|Slowly] the cart came free. "[It was me|I am very strong]," said the little one, and nobody [argued|laughed]. [|They all rode home and ate some {food}.]
""")  # noqa: E501
ENDINGS = split("""
[So the day ended well|That is how it was|And that was that].
[From that day on|After that] they were [good friends|never far apart|a little wiser].
The [moon rose|sun went down] over {place}, and [all was quiet|the day was over|the owls woke up].
[{name} still tells this story|{friend} still laughs about it] [in winter|when it rains|every year].
""")
TASK_PROMPT = "Write a story with these words: {kind}, {spot}, {colour} {thing}.\nStory:"
TASK_PLOTS = split("""
The {kind} [carried|brought|dragged] a {colour} {thing} [all the way|home from far away|along the path] and left it {at}. [By morning|By evening|An hour later] [a bird slept in it|somebody had tied a note to it|it was covered with snow], and the {kind} [smiled|was puzzled|did not mind].
[Nobody|No one] {at} had ever seen a {colour} {thing} before. The {kind} [showed it to the children|sold it for a song|hung it from a branch], and [for a week they talked of nothing else|the old women clapped|even the geese were silent].
A {colour} {thing} lay {at}, [wet with rain|shining like the moon|quite alone]. "[Whose is it|Who lost this|Is it mine now]?" asked the {kind}, but only [the wind|an echo|a frog] [answered|said anything].
[Every night|Every Sunday|Each spring] the {kind} [sat|waited|danced] {at} with a {colour} {thing}. [It was a promise, and promises must be kept|It was for luck, and it often worked|Nobody knew why, and nobody dared to ask].
The {kind} lost a bet and had to [paint|polish|mend] a {colour} {thing} {at}. [It took three days|The work was slow], because [the light was poor|a cat sat on it|it rained], and [in the end the winner helped|soon everyone forgot the bet].
[Once|Long ago|Last winter] a {colour} {thing} saved a {kind} {at}. [The ice broke|The fog came down|The snow was deep], and the {thing} [showed the others where to look|was something to hold on to|was all that anyone could see].
"[Give me|Lend me|Find me] the {colour} {thing}," said the {kind}, "and I will [show you a secret|sing for you|cook for you] {at}." [It was a good trade|So they shook hands|It did not take long], and [both kept their word|nobody was sorry|the evening was long].
There is a painting of a {kind} {at}. In one corner you can see a {colour} {thing}, [very small|almost hidden|badly drawn], which [the painter added for a joke|nobody can explain|was a gift from a queen].
""")  # noqa: E501


def expand(template: str, cast: dict[str, str], rng: random.Random) -> str:
    """Picks one branch of every [a|b] choice, fills the {slots}, and tidies the result.

    Args:
        template: Text with choices, innermost ones resolved first, and slots.
        cast: Values of the slots.
        rng: Source of the choices.

    Returns:
        Plain English, with "an" before vowels and a capital at the start of each sentence.
    """
    while "[" in template:
        template = INNERMOST.sub(lambda m: rng.choice(m[1].split("|")), template, count=1)
    text = re.sub(r"\s+", " ", template.format(**cast)).strip()
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    text = re.sub(r" (?=[.,])", "", text)
    return re.sub(r"(^|(?<=[.!?] ))[a-z]", lambda m: m[0].upper(), text)


def draw_person(rng: random.Random) -> tuple[str, str, str, str]:
    """Draws a name with its pronouns (name, subject, object, possessive)."""
    if rng.random() < 0.5:
        return rng.choice(SHE), "she", "her", "her"
    return rng.choice(HE), "he", "him", "his"


def draw_cast(rng: random.Random) -> dict[str, str]:
    """Draws who, where and what for one story; the two friends never share a name."""
    hero, friend = draw_person(rng), draw_person(rng)
    while friend[0] == hero[0]:
        friend = draw_person(rng)
    cast = dict(zip(("name", "he", "him", "his"), hero, strict=True))
    cast |= dict(zip(("friend", "fhe", "fhim", "fhis"), friend, strict=True))
    cast["kind"], cast["fkind"] = rng.sample(KINDS, 2)
    cast["colour"], cast["colour2"] = rng.sample(COLOURS, 2)
    cast["at"], cast["at2"] = rng.sample(PLACES, 2)
    cast["place"] = cast["at"].split(" ", 1)[1]
    cast["cover"] = rng.choice(["umbrella", "blanket", "hat"])
    slots = {"thing": THINGS, "food": FOODS, "weather": WEATHERS, "time": TIMES}
    return cast | {slot: rng.choice(words) for slot, words in slots.items()}


def write_story(rng: random.Random) -> str:
    """Writes one story: an opening, a plot, and half of the time, if it is short, an ending."""
    opening, plot = rng.choice(OPENINGS), rng.choice(PLOTS + TASK_PLOTS)
    end = len(re.findall("[.?!]", plot)) < 8 and rng.random() < 0.5
    return expand(f"{opening} {plot} {rng.choice(ENDINGS) if end else ''}", draw_cast(rng), rng)


def write_task(rng: random.Random, keys: int, per_key: int = 4) -> list[list[dict[str, str]]]:
    """Writes the fine-tuning rows, one group of rows to each distinct (who, where, what) key."""
    groups: dict[str, list[dict[str, str]]] = {}
    while len(groups) < keys:
        cast = draw_cast(rng)
        prompt = TASK_PROMPT.format(spot=cast["place"].removeprefix("the "), **cast)
        plots = rng.sample(TASK_PLOTS, per_key)
        groups[prompt] = [
            {"prompt": prompt, "completion": " " + expand(plot, cast, rng)} for plot in plots
        ]
    return list(groups.values())


def train_tokenizer(stories: list[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that puts BOS in front of every text."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(stories, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pack(stories: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Joins the tokenized stories, each closed with EOS, and cuts them into rows of BLOCK."""
    encoded = tokenizer(stories)["input_ids"]
    flat = [token for ids in encoded for token in [*ids, tokenizer.eos_token_id]]
    return torch.tensor(flat[: len(flat) // BLOCK * BLOCK]).view(-1, BLOCK)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Builds the untrained model; every width is a multiple of 64, the NF4 block size."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(rows: torch.Tensor, size: int, steps: int) -> Iterator[torch.Tensor]:
    """Yields batches of shuffled rows, pass after pass, for a number of steps."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(rows))])
        yield rows[order[:size]]
        order = order[size:]


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Returns the mean loss, in nats per token, over rows."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in rows.split(16)]
    model.train()
    return float(torch.stack(losses).sum() / len(rows))


def pretrain(model: LlamaForCausalLM, rows: torch.Tensor, steps: int, peak: float = 4e-3) -> None:
    """Trains in place with AdamW, a short warm-up and a cosine to a twentieth of the peak rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 20)
    for step, batch in enumerate(batches(rows, 16, steps), start=1):
        cosine = 0.525 + 0.475 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = peak * min(step / warmup, cosine)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            click.echo(f"step {step}/{steps} loss {loss.item():.3f}")


def save_jsonl(groups: list[list[dict[str, str]]], path: Path) -> None:
    """Writes the rows of all groups, one JSON object to a line."""
    path.write_text("".join(json.dumps(row) + "\n" for group in groups for row in group))


@click.command(help="Make the quickstart's tiny Llama, tokenizer and fine-tuning data.")
@click.option("--seed", default=0, show_default=True, help="Seed of the text and the training.")
@click.option("--output", default="recipes/quickstart", type=click.Path(path_type=Path))
@click.option("--stories", default=16000, show_default=True, help="Stories to pretrain on.")
@click.option("--steps", default=1000, show_default=True, help="Pretraining steps of 4096 tokens.")
@click.option("--keys", default=150, show_default=True, help="Task keys; a sixth is held out.")
def main(seed: int, output: Path, stories: int, steps: int, keys: int) -> None:
    """Writes the model and the data files."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    rng = random.Random(seed)
    corpus = [write_story(rng) for _ in range(stories)]
    tokenizer = train_tokenizer(corpus)
    rows = pack(corpus, tokenizer)
    cut = len(rows) * 49 // 50
    model = build_model(tokenizer)
    click.echo(f"{rows.numel()} tokens, {model.num_parameters()} parameters")
    click.echo(corpus[0])
    pretrain(model, rows[:cut], steps)
    click.echo(f"loss on unseen stories {evaluate(model, rows[cut:]):.3f}")
    model.to(torch.bfloat16).save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    groups = write_task(random.Random(f"task {seed}"), keys)
    (output / "data").mkdir(exist_ok=True)
    save_jsonl(groups[: keys * 5 // 6], output / "data" / "train.jsonl")
    save_jsonl(groups[keys * 5 // 6 :], output / "data" / "test.jsonl")
    click.echo(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
