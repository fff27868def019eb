"""Sentences with personal data of a seeded generator, and documents without any: one JSON line each."""
import json
import random
import string

from faker import Faker

SEED = 20261125
random.seed(SEED)
Faker.seed(SEED)
fake = Faker(["en_US", "de_DE", "fr_FR"])
american = Faker("en_US")
european = Faker(["de_DE", "fr_FR", "en_GB"])


def letters(n):
    return "".join(random.choices(string.ascii_letters + string.digits, k=n))


def card():
    number = american.credit_card_number(random.choice(["visa16", "mastercard", "amex", "discover"]))
    if len(number) == 16 and random.random() < 0.5:
        return random.choice([" ", "-"]).join(number[i : i + 4] for i in range(0, 16, 4))
    return number


def secret():
    return random.choice(
        [
            lambda: "sk-" + letters(40),
            lambda: "ghp_" + letters(36),
            lambda: "AKIA" + "".join(random.choices(string.ascii_uppercase + string.digits, k=16)),
            lambda: "eyJ" + letters(40) + "." + letters(80) + "." + letters(40),
        ]
    )()


def iban():
    number = european.iban()
    return number if random.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))


MAKERS = {"email": lambda: fake.email(), "card": card, "ssn": lambda: american.ssn(), "iban": iban, "secret": secret}
PATTERNS = [
    "Please write to {}.",
    "{} is on file",
    "value={}; next",
    "({})",
    "the customer gave {}, and nothing else",
    '"{}"',
    "{}",
]

for _ in range(4000):
    kind = random.choice(list(MAKERS))
    value = MAKERS[kind]()
    text = f"{fake.sentence()} {random.choice(PATTERNS).format(value)} {fake.sentence()}"
    print(json.dumps({"kind": kind, "value": value, "text": text}))

for n in range(4000):
    document = {
        "id": fake.uuid4(),
        "at": fake.iso8601(),
        "ms": random.randrange(10**12, 2 * 10**12),
        "ns": str(random.randrange(10**18, 2 * 10**18)),
        "version": f"{random.randrange(20)}.{random.randrange(100)}.{random.randrange(1000)}",
        "price": round(random.random() * 1000, 2),
        "sha256": "%064x" % random.getrandbits(256),
        "order": f"ORD-{random.randrange(10**9):09d}",
        "numbers": [random.randrange(1, 14) for _ in range(16)],
        "text": fake.paragraph(),
        "path": fake.file_path(depth=3),
        "mac": fake.mac_address(),
        "color": fake.hex_color(),
        "isbn": fake.isbn13(),
    }
    print(json.dumps({"kind": None, "text": json.dumps(document)}))
