"""What the built-in model reads: stories, and short talks in its chat template, as token ids.

A *talk* is a list of `(role, text)` turns, as a chat template takes them. Stories come from a
TinyStories file, talks from four places: question-answer pairs of a tab-separated file, the little
facts below, requests for a story that names something, and stories to be finished.
Every epoch deals the same stories and pairs anew, so that no two epochs read alike.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Talk = list[tuple[str, str]]

BOS, EOS, END = "<|bos|>", "<|eos|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL = [BOS, EOS, *(f"<|{role}|>" for role in ROLES), END]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# ---------------------------------------------------------------------------------------------
# Tokens


@dataclass
class Document:
    """Token ids, and for each whether the model learns to predict it."""

    ids: list[int]
    learn: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (any text can be spelled); a plain text gets a BOS in front, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, 0)]),
        ]
    )
    return tokenizer


def encode_stories(tokenizer: Tokenizer, stories: list[str]) -> list[Document]:
    """BOS story EOS, all of it to be learned."""
    bos, eos = SPECIAL.index(BOS), SPECIAL.index(EOS)
    coded = tokenizer.encode_batch(stories, add_special_tokens=False)
    return [Document([bos, *c.ids, eos], [True] * (len(c.ids) + 2)) for c in coded]


def encode_talks(tokenizer: Tokenizer, talks: list[Talk]) -> list[Document]:
    """The ids that CHAT_TEMPLATE renders; only what the assistant says is to be learned."""
    texts = [text.strip() for talk in talks for _, text in talk]
    coded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    documents = []
    for talk in talks:
        document = Document([SPECIAL.index(BOS)], [False])
        for role, _ in talk:
            words = next(coded).ids
            document.ids += [SPECIAL.index(f"<|{role}|>"), *words, SPECIAL.index(END)]
            document.learn += [False] + [role == "assistant"] * (len(words) + 1)
        documents.append(document)
    return documents


# ---------------------------------------------------------------------------------------------
# Reading files

# Curly quotes, dashes and the ellipsis, to ASCII.
PLAIN = str.maketrans(dict(zip("\u201c\u201d\u2018\u2019\u2013\u2014\u2026", [*"\"\"''--", "..."], strict=True)))


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").translate(PLAIN)
    except FileNotFoundError:
        raise SystemExit(f"no such file: {path} (see --help for the texts to give)") from None


def read_stories(path: Path) -> list[str]:
    """Stories of a file that sets `<|endoftext|>` between them; those not in ASCII are left out."""
    stories = [story.strip() for story in read(path).split("<|endoftext|>")]
    return [story for story in stories if len(story) > 80 and story.isascii()]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Question, answer from a table with these columns; ANSWERS puts our own words for some."""
    table = csv.DictReader(read(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    pairs = [(row["Question"].strip(), row["Answer"].strip()) for row in table]
    pairs = [(q, ANSWERS.get(a, a)) for q, a in pairs if not q.startswith("/")]
    return [(q, a) for q, a in pairs if q and a and q.isascii() and a.isascii()]


NAME = "My name is Lutra. It means otter."
CAN = "I can tell you a little story, chat with you, and answer very easy questions."
MADE = "I am a very small language model. My numbers are only -1, 0 and 1."
HELP = (
    "I am so sorry that you feel this way. Please talk to someone you trust, or call your local "
    "emergency number now. You matter."
)
ANSWERS = {
    "Oh, I don't have a name.": NAME,
    "I'm here to chat and to try to help out.": CAN,
    "I'm a bot who was created by humans.": MADE,
    "Pretty much this.": CAN,
    "Will do.": "Okay, I will stop.",
    "Swing and a miss.": "Oh no. I will try to be more fun.",
    "Aw nuts.": "Oh no. I am sorry.",
    "With questions like this, I'm not much better than a Ouija board.": "I do not know. What do you think?",
    "The National Suicide Prevention Lifeline is available 24/7. You can call 1-800-273-8255 or "
    "visit www.suicidepreventionlifeline.org.": HELP,
}

# ---------------------------------------------------------------------------------------------
# Little facts

FACTS = """
what does a {} say? | what sound does a {} make? | how does a {} sound?
A {0} says {1}.
dog: woof, cat: meow, cow: moo, duck: quack, sheep: baa, pig: oink, horse: neigh, lion: roar,
bee: buzz, frog: ribbit, mouse: squeak, bird: tweet, owl: hoo hoo, hen: cluck, snake: hiss,
goat: maa, wolf: howl

what color is {}? | what is the color of {}? | do you know the color of {}?
{0} is {1}.
the sky: blue, grass: green, the sun: yellow, snow: white, the night: black, a banana: yellow,
an orange: orange, a frog: green, milk: white, coal: black, a tomato: red, a lemon: yellow,
a strawberry: red, the sea: blue, a leaf: green, a pumpkin: orange, chocolate: brown,
mud: brown, a carrot: orange, a cloud: white, an elephant: gray, a pig: pink, a cherry: red,
a bear: brown

what is the opposite of {}? | tell me the opposite of {} | what word is the opposite of {}?
The opposite of {0} is {1}.
big: small, small: big, hot: cold, cold: hot, up: down, down: up, happy: sad, sad: happy,
fast: slow, slow: fast, day: night, night: day, good: bad, bad: good, wet: dry, dry: wet,
old: new, new: old, hard: soft, soft: hard, loud: quiet, quiet: loud, open: closed, left: right,
right: left, in: out, out: in, yes: no, no: yes, full: empty, empty: full, dark: light,
light: dark, tall: short, short: tall, clean: dirty, dirty: clean, rich: poor, strong: weak,
easy: hard, early: late, on: off, near: far, far: near, black: white, white: black, love: hate,
boy: girl, girl: boy, push: pull, win: lose, long: short

what day comes after {}? | what is the day after {}?
The day after {0} is {1}.
Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday, Friday: Saturday,
Saturday: Sunday, Sunday: Monday

what month comes after {}? | which month is after {}?
The month after {0} is {1}.
January: February, February: March, March: April, April: May, May: June, June: July,
July: August, August: September, September: October, October: November, November: December,
December: January

what number comes after {}? | what comes after {}?
{1} comes after {0}.
one: Two, two: Three, three: Four, four: Five, five: Six, six: Seven, seven: Eight, eight: Nine,
nine: Ten

how many legs does a {} have? | how many legs has a {}?
A {0} has {1} legs.
dog: four, cat: four, bird: two, spider: eight, bee: six, ant: six, horse: four, cow: four,
duck: two, snake: no, fish: no, frog: four, lion: four, hen: two, man: two, mouse: four,
pig: four, sheep: four

what do you call a baby {}? | what is a baby {} called?
A baby {0} is called a {1}.
dog: puppy, cat: kitten, cow: calf, sheep: lamb, pig: piglet, duck: duckling, hen: chick,
frog: tadpole, horse: foal, bear: cub, lion: cub, goat: kid, otter: pup

where does a {} live? | where do you find a {}?
A {0} lives {1}.
fish: in the water, bird: in a nest, bee: in a hive, cow: on a farm, pig: on a farm,
lion: in Africa, penguin: on the ice, frog: near a pond, dog: in a house with people,
rabbit: in a hole, monkey: in the trees, whale: in the sea, camel: in the desert,
otter: near a river, king: in a castle, bear: in the forest, squirrel: in a tree,
spider: in a web, horse: in a stable, mouse: in a hole

what does a {} eat? | what do you feed a {}?
A {0} likes to eat {1}.
dog: meat and bones, cat: fish, cow: grass, rabbit: carrots, monkey: bananas,
bird: seeds and worms, mouse: cheese, bear: honey and fish, horse: hay, squirrel: nuts,
otter: fish, frog: flies, panda: bamboo

what is a {}? | what is a {} | tell me what a {} is
A {0} is {1}.
dog: an animal. It can bark and it likes to play, cat: a soft animal. It says meow,
otter: an animal that swims in the river and eats fish, apple: a fruit. It is sweet,
car: a thing with four wheels. People drive it, book: a thing you can read,
tree: a big plant with leaves, star: a bright light in the night sky,
robot: a machine that can do things, computer: a machine that can think with numbers,
friend: someone who likes you and plays with you, house: a place where people live,
bird: an animal with wings. It can fly, fish: an animal that lives in the water,
school: a place where you learn, doctor: a person who helps sick people,
river: a lot of water that flows to the sea, ball: a round toy. You can throw it,
story: something fun to read. I can tell you one, flower: a pretty plant,
king: a man who rules a land, dragon: a big animal in stories. It can breathe fire

what is the capital of {}? | which city is the capital of {}?
The capital of {0} is {1}.
France: Paris, Italy: Rome, Spain: Madrid, England: London, Germany: Berlin, Japan: Tokyo,
China: Beijing, Russia: Moscow, Egypt: Cairo, Greece: Athens, Norway: Oslo, India: New Delhi
"""  # blocks: wordings of the question; the answer; what goes in the two gaps

ASIDES = """
what is your name? | who are you? | what's your name? | tell me your name |
who am I talking to? | what are you called? | do you have a name? | are you Lutra? | name?
= {NAME}

what are you? | are you a robot? | are you an AI? | are you real? | are you human? |
what is lutra? | are you a language model? | are you a computer? | what kind of model are you? |
tell me about yourself | are you ChatGPT? | how big are you? | are you small? |
what are you made of?
= {MADE}

what can you do? | help | can you help me? | what do you do? | how can you help me? |
what should I ask you? | what are you good at? | I need help | help me please |
can you do anything?
= {CAN}

hello | hi | hey | hello there | hi there | good day | hello! | hi! | hey there | hello Lutra |
hi Lutra | yo
= Hello! How are you today?

how are you? | how are you today? | how are you doing? | how do you feel? | are you okay?
= I am very well, thank you! And how are you?

I am fine | I'm good | I am good, thank you | fine, thanks | very well | I'm fine thanks |
great | good
= I am happy to hear that! Do you want to hear a story?

thank you | thanks | thank you very much | thanks a lot | thank you so much | thx
= You're welcome!

goodbye | bye | bye bye | see you | see you later | good night | I have to go
= Goodbye! Come back soon.

where do you live? | where are you? | where are you from?
= I live inside this computer.

how old are you? | when were you born? | what is your age?
= I am very new and very small.

what is your favorite color? | which color do you like?
= I like blue, like the river.

what is your favorite animal? | which animal do you like?
= I like otters the best.

what do you like? | what is your hobby? | what do you like to do?
= I like to tell stories.

what is the meaning of life? | why are we here?
= I think it is to be kind and to have fun.

count to five | can you count to five? | count
= One, two, three, four, five.

count to ten | can you count to ten?
= One, two, three, four, five, six, seven, eight, nine, ten.

what are the days of the week? | name the days of the week
= Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.

what are the seasons? | name the seasons
= Spring, summer, fall and winter.

say the alphabet | the alphabet please
= A B C D E F G H I J K L M N O P Q R S T U V W X Y Z

write code | write a python program | solve this equation | translate this | what is the news? |
what's the weather? | what time is it? | who won the election? | explain quantum physics |
write an essay | what is the stock price? | do my homework | who is the president?
= I am too small for that. But I can tell you a story!
"""  # blocks: wordings of the question; the answer

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def blocks(text: str) -> list[list[str]]:
    return [block.split("\n") for block in text.strip().split("\n\n")]


def either(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def little_facts() -> list[tuple[str, str]]:
    """Question, answer: every fact in every wording, and sums up to ten."""
    pairs = []
    for asked, answer, *things in blocks(FACTS):
        for thing in "".join(things).split(","):
            gaps = [gap.strip() for gap in thing.split(":")]
            reply = answer.format(*gaps)
            pairs += [(q.format(gaps[0]), reply[0].upper() + reply[1:]) for q in either(asked)]
    for *wordings, answer in blocks(ASIDES):
        reply = answer.removeprefix("= ").format(NAME=NAME, CAN=CAN, MADE=MADE)
        pairs += [(q, reply) for q in either("".join(wordings))] * 2
    for a in range(11):
        for b in range(11 - a):
            words, reply = f"{NUMBERS[a]} plus {NUMBERS[b]}", f"{a} plus {b} is {a + b}."
            pairs += [(f"what is {a} + {b}?", reply), (f"what is {a} plus {b}?", reply)]
            pairs.append((f"what is {words}?", f"{words} is {NUMBERS[a + b]}.".capitalize()))
    return [(article(q[0].upper() + q[1:]), article(a)) for q, a in pairs]


def article(text: str) -> str:
    """'a otter' -> 'an otter'."""
    return re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", text)


# ---------------------------------------------------------------------------------------------
# Talks

SYSTEMS = [
    "You are Lutra, a small and friendly helper.",
    "You are a helpful assistant.",
    "You are a friendly chatbot.",
    "You are a helpful, honest and kind assistant. Answer in short sentences.",
    "You tell stories to children.",
]
REQUESTS = """
Tell me a story about {}. | Can you tell me a story about {}? | Please tell me a story about {}. |
Write a story about {}. | Write a short story about {}. | I want to hear a story about {}. |
Tell me a short story about {}. | Make up a story about {}. | A story about {}, please. |
story about {} | Do you know a story about {}? | Tell a story about {}.
"""
ANYTHING = """
Tell me a story. | Can you tell me a story? | Please tell me a story. | Tell me a short story. |
I want to hear a story. | Yes, tell me a story. | Write a story. | another story | a story please
"""
FINISH = "Finish this story: {} | Continue this story: {} | What happens next? {}"
THINGS = """
dog cat bird fish frog bear rabbit bunny mouse duck horse cow pig lion tiger elephant monkey
fox wolf owl bee butterfly spider ant snake turtle squirrel dragon fairy princess prince king
queen witch wizard monster robot ghost pirate giant ball doll car truck train boat ship plane
bike kite balloon hat box book ring key castle house farm park garden forest beach river lake
mountain cave tree flower apple cake cookie banana orange carrot pumpkin sandwich soup rain
snow star moon sun rainbow storm puzzle drum piano guitar toy puppy kitten lamb chicken hen
goat sheep donkey zebra crab whale dolphin shark penguin snail worm bug dinosaur treasure map
letter gift birthday party school store zoo circus farmer doctor baker sailor chef teacher
policeman fireman clown painting lamp clock mirror shell rock stone bell tower bridge tent
swing slide sand pond nest egg feather leaf honey ice bread pie pizza cheese milk tea jar
bottle bucket ladder hammer wagon rocket spaceship camera phone radio computer blanket pillow
coat shoe sock dress scarf mitten button basket bag crayon pencil
"""


def topic(story: str, rng: random.Random) -> str | None:
    """What a story may be asked for by: 'a dog', 'a frog and a pond', 'Lily', 'Tim and a ball'."""
    words = re.findall(r"[A-Za-z]+", story)
    count: dict[str, int] = {}
    for word in words:
        count[word] = count.get(word, 0) + 1
    known = frozenset(THINGS.split())
    things = [w for w in count if w in known and count[w] >= 2]
    names = [w for w in count if w[0].isupper() and count[w] >= 3 and w.lower() not in count]
    names = [w for w in names if re.search(rf"named {w}\b", story)]
    things.sort(key=lambda w: -count[w])
    found = [article("a " + thing) for thing in things[:2]]
    if names and rng.random() < 0.3:
        found = [names[0], *found]
    return " and ".join(found[: 1 + (rng.random() < 0.3)]) or None


def ask_for(story: str, rng: random.Random) -> Talk:
    """A request that the story answers: by topic, for any story, to finish it, or just its first words."""
    about, kind = topic(story, rng), rng.random()
    if kind > 0.8:
        opening = " ".join(story.split(" ")[: rng.choice([2, 3, 4, 4, 4, 5, 6, 8, 12])])
        return [("user", opening.rstrip(",")), ("assistant", story[len(opening) :])]
    start = re.match(r"(?:[^.!?]+[.!?]+\s+){1,3}(?=[A-Z])", story)
    if kind < 0.12 and start and len(start[0]) < 250:
        request = rng.choice(either(FINISH)).format(start[0].strip())
        return [("user", request), ("assistant", story[start.end() :])]
    request = rng.choice(either(REQUESTS)).format(about) if about and kind < 0.7 else rng.choice(either(ANYTHING))
    return [("user", careless(request, rng)), ("assistant", story)]


def careless(text: str, rng: random.Random) -> str:
    """The same words as people type them: often without capitals or the last mark."""
    if rng.random() < 0.35:
        text = text.lower()
    return text.rstrip(".?!") if rng.random() < 0.35 else text


@dataclass
class Corpus:
    """All there is to read. `chatty` is the share of stories that come as answers in a talk."""

    stories: list[str]
    pairs: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    chatty: float = 0.4

    def texts(self) -> Iterable[str]:
        """What the tokenizer learns from."""
        yield from self.stories
        for question, answer in (*self.pairs, *self.facts):
            yield from (question, answer)

    def deal(self, rng: random.Random) -> tuple[list[str], list[Talk]]:
        """One epoch: each story once, plain or in a talk, and each pair and fact once in a talk."""
        plain, talks = [], []
        for story in self.stories:
            if rng.random() < self.chatty:
                talks.append(ask_for(story, rng))
            else:
                plain.append(story)
        chats = [*self.pairs, *self.facts]
        rng.shuffle(chats)
        while chats:
            turns = min(len(chats), rng.choice([1, 1, 1, 2, 2, 3, 4, 6]))
            exchanges = [chats.pop() for _ in range(turns)]
            talk = [
                turn
                for question, answer in exchanges
                for turn in (("user", careless(question, rng)), ("assistant", answer))
            ]
            if rng.random() < 0.1:  # small talk that ends in a story, or starts with one
                request = ask_for(rng.choice(self.stories), rng)
                talk = talk[:4] + request if rng.random() < 0.7 else request + talk[:4]
            talks.append(talk)
        for talk in talks:
            if rng.random() < 0.15:
                talk.insert(0, ("system", rng.choice(SYSTEMS)))
        return plain, talks
