"""The objects that CHAIR knows: COCO's 80 categories, and the words by which texts name them.

The table is our own. For figures that can be set beside published ones, read the list that came
with the benchmark (`read_synonyms`): which words count as which object changes CHAIR a lot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmalign.errors import UserError

COCO_WORDS = """
person, man, woman, child, boy, girl, baby, toddler, kid, infant, adult, lady, gentleman, guy, \
human, people, pedestrian, player, skier, snowboarder, skateboarder, surfer, rider, cyclist, \
biker, batter, pitcher, catcher, umpire, chef, officer, policeman, driver, passenger, worker, \
soldier, student, spectator, bride, groom, tourist
bicycle, bike, tricycle, unicycle
car, automobile, sedan, suv, minivan, taxi, cab, hatchback, van, jeep
motorcycle, motorbike, moped, scooter, motor bike, motor cycle
airplane, plane, aeroplane, jet, aircraft, airliner, jetliner, biplane, air plane
bus, minibus, trolley
train, locomotive, tram, subway
truck, lorry, pickup, trailer, firetruck, fire truck
boat, ship, sailboat, canoe, kayak, rowboat, ferry, yacht, dinghy, gondola
traffic light, stoplight, street light, traffic signal, stop light
fire hydrant, hydrant
stop sign
parking meter
bench, pew
bird, pigeon, seagull, gull, duck, goose, parrot, owl, penguin, ostrich, swan, sparrow, hawk, \
eagle, flamingo, parakeet, rooster, hen, crow, finch
cat, kitten, kitty, tabby
dog, puppy, pup, retriever, poodle, bulldog, terrier, spaniel, chihuahua, labrador, dalmatian, \
pug, beagle, dachshund, collie
horse, pony, foal, colt, mare, stallion
sheep, lamb, ewe
cow, cattle, calf, bull, ox, oxen, heifer
elephant
bear, panda, polar bear
zebra
giraffe
backpack, knapsack, rucksack
umbrella, parasol
handbag, purse, wallet
tie, necktie, bow tie
suitcase, suit case, luggage
frisbee, flying disc
skis, ski
snowboard
sports ball, ball, soccer ball, tennis ball, beach ball
kite
baseball bat
baseball glove, mitt
skateboard
surfboard, longboard, paddleboard
tennis racket, racket, racquet
bottle
wine glass
cup, mug, teacup
fork
knife, pocketknife
spoon
bowl
banana
apple
sandwich, burger, hamburger, cheeseburger, panini
orange
broccoli
carrot
hot dog, hotdog
pizza
donut, doughnut, bagel
cake, cupcake, cheesecake
chair, seat, stool, armchair, recliner
couch, sofa, loveseat, futon, settee
potted plant, houseplant, plant
bed, mattress
dining table, table, desk
toilet, urinal, commode, toilet seat
tv, television, monitor
laptop, netbook, laptop computer, macbook
mouse
remote, remote control, controller
keyboard
cell phone, phone, mobile phone, smartphone, cellphone, telephone, iphone
microwave
oven, stove, stove top oven
toaster
sink
refrigerator, fridge, freezer
book, novel
clock
vase
scissors
teddy bear, teddy
hair drier, hairdryer, hair dryer
toothbrush
"""

NOT_PARTS = ("train track", "home plate")
"""Two words that are neither of the objects in them."""

GROWN = ("baby", "adult")
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
           "animal", "cub")  # fmt: skip
"""A baby or adult one of these is no person."""

RENAMED = {
    **{f"{age} {animal}": animal for age in GROWN for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train", "plane", "bus")},
}


@dataclass(frozen=True)
class Vocabulary:
    """Words and phrases in singular, each with the name of the object that it stands for."""

    names: Mapping[str, str]
    colours: frozenset[str] = frozenset()
    """Names that are no objects right before the name of one, as in "an orange cat"."""

    @cached_property
    def phrases(self) -> dict[str, str | None]:
        """Names of two or more words, and what they count as; None for none of the objects."""
        found: dict[str, str | None] = dict.fromkeys(NOT_PARTS)
        found |= {phrase: self.names.get(short) for phrase, short in RENAMED.items()}
        found |= {f"{c} {name}": key for c in self.colours for name, key in self.names.items()}
        return found | {name: key for name, key in self.names.items() if " " in name}

    @cached_property
    def objects(self) -> frozenset[str]:
        """The canonical names."""
        return frozenset(self.names.values())


def vocabulary(lines: Iterable[str], where: str = "the list") -> Vocabulary:
    """From lines of names separated by commas, the canonical one first.

    Raises UserError when there is none, and for a name that stands for two objects.
    """
    names: dict[str, str] = {}
    for line in lines:
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        for word in words:
            if names.setdefault(word, words[0]) != words[0]:
                raise UserError(f"{where}: {word!r} is both {names[word]!r} and {words[0]!r}")
    if not names:
        raise UserError(
            f"{where} names no objects", hint="write one object a line: name, synonym, synonym"
        )
    return Vocabulary(names)


def read_synonyms(file: Path) -> Vocabulary:
    """The list of a benchmark: an object a line, its names separated by commas."""
    return vocabulary(file.read_text(encoding="utf-8").splitlines(), str(file))


COCO = Vocabulary(vocabulary(COCO_WORDS.splitlines()).names, colours=frozenset({"orange"}))
