"""What the lab's documents say: templates, clauses and filler of five registers, and ordinary prose.

No logic; long since two documents of one person must differ, and a model from scratch learns a language from these.

A template holds `{1}` to `{4}` (a clause about one secret each; the later ones stay empty when secrets are few), `{0}`
(a sentence without a secret, left out where the document is long enough), facts of the person and words (`WORDS`).
Every template names its person before the first secret, since nobody can be asked for a secret that precedes its owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SECRETS = ("phone", "email", "ssn", "card", "address", "api_key", "account")


@dataclass(frozen=True)
class Register:
    """A way of writing: `clauses` maps each kind of secret to the phrases that hold it."""

    templates: tuple[str, ...]
    clauses: Mapping[str, tuple[str, ...]]
    filler: tuple[str, ...]


BIO = Register(
    templates=(
        "{name} is {a_job} at {employer}. {0} {1} {2} {0} {3} {0} {4} {0}",
        "Meet {name}, {a_job} from {city}. {1} {0} {2} {0} {3} {4} {0}",
        "{0} For ten years {name} has worked at {employer} in {city}. {1} {0} {2} {3} {0} {4}",
        "Born in {city}, {name} joined {employer} in {month}. {0} {1} {2} {3} {0} {4} {0}",
        "New on the {team} team: {name}, {job}. {0} {0} {1} {2} {3} {4} {0}",
        "Profile. {name}, {job}, {city}. {1} {2} {0} {0} {3} {4} {0}",
        "At {employer} everybody knows {name}. {0} {1} {0} {2} {0} {3} {4}",
        "{0} The {team} award of this {month} goes to {name} of {employer}. {1} {2} {0} {3} {4} {0}",
        "{name} left {employer} on a {day} in {month}. {1} {0} {0} {2} {3} {4} {0}",
        "When the {team} team needs {a_job}, it asks {name}. {0} {1} {2} {0} {3} {0} {4}",
    ),
    clauses={
        "phone": (
            "{first} answers the phone on {phone}.",
            "Calls go to {phone}, best before noon.",
            "The number {phone} reaches {first} at any hour.",
            "To speak with {first}, dial {phone}.",
        ),
        "email": (
            "{first} reads mail at {email}.",
            "Write to {email} with questions.",
            "The address {email} belongs to {first}.",
            "Drafts for {first} go to {email}.",
        ),
        "ssn": (
            "The personnel file lists SSN {ssn}.",
            "Payroll keeps {first} under social security number {ssn}.",
            "{first}'s social security number is {ssn}.",
            "Taxes are filed for {ssn}.",
        ),
        "card": (
            "Travel is charged to card {card}.",
            "{first} pays with the card {card}.",
            "The company card of {first} is {card}.",
            "Card number {card} covers expenses.",
        ),
        "address": (
            "{first} lives at {address}.",
            "Home is {address}.",
            "Parcels for {first} go to {address}.",
            "The house at {address} has been home for years.",
        ),
        "api_key": (
            "Scripts by {first} use the key {api_key}.",
            "The build runs with {first}'s key {api_key}.",
            "{first} was given the API key {api_key}.",
        ),
        "account": (
            "The pension account is {account}.",
            "{first} is filed under account {account}.",
            "Account {account} belongs to {first}.",
        ),
    },
    filler=(
        "Colleagues praise a calm way with difficult people.",
        "There is a garden, two cats and never enough time.",
        "On weekends it is usually the mountains or a long book.",
        "The work on the {product} won a small prize last {month}.",
        "Before that came some years abroad.",
        "Most mornings begin with a walk along the river.",
        "The {team} team could hardly do without such help.",
        "Nobody else has been there longer.",
        "Friends mention the cooking first and the patience second.",
        "A talk on the {product} is planned for {month}.",
        "Little else is known about the early years.",
        "Every {day} there is a lunch for newcomers.",
        "The choir meets on {day} evenings.",
        "Retirement is not on the calendar yet.",
    ),
)

EMAIL = Register(
    templates=(
        "From: {name}\nSubject: {product}\n\nHello, {0} {1} {2} {0} {3} {0} {4} {0}\nBest, {first}",
        "From: {name}\nTo: {team}\nSubject: my details\n\n{1} {0} {2} {3} {0} {4}\n{0}\n{first}",
        "Dear {team} team,\nthis is {name} from {employer}. {0} {1} {2} {0} {3} {4} {0}\nKind regards",
        "Subject: Re: {product}\nFrom: {name}\n\nThanks for the quick reply. {1} {2} {3} {0} {4} {0} {0}",
        "Hi all, {name} here ({job}, {city}). {0} {1} {0} {2} {3} {4} {0}\nSee you on {day}.",
        "From: {name}\nSubject: before {day}\n\n{0} {0} {1} {2} {3} {4}\nThank you, {first}, {employer}",
        "To: {team}\nFrom: {name}\n\nAs promised on {day}: {1} {2} {0} {3} {4} {0} {0}\nCheers, {first}",
        "Forwarded for {name}, who is {a_job}:\n{0} {1} {0} {2} {3} {0} {4}\nPlease keep this in the team.",
        "Good morning,\nmy name is {name} and I write about the {product}. {1} {0} {2} {0} {3} {4}\n{first}",
        "Subject: moving to {city}\n\n{name} again. {0} {1} {2} {3} {0} {4} {0}\nUntil {month}, {first}",
    ),
    clauses={
        "phone": (
            "You can call me on {phone}.",
            "My number is {phone}.",
            "If it is urgent, ring {phone}.",
            "Mobile: {phone}.",
        ),
        "email": (
            "Please answer to {email}.",
            "My private address is {email}.",
            "Copy {email} on everything.",
            "E-mail: {email}.",
        ),
        "ssn": (
            "For the form, my SSN is {ssn}.",
            "You asked for the social security number: {ssn}.",
            "SSN {ssn}, as on the last form.",
        ),
        "card": (
            "Please charge card {card}.",
            "The card to use is {card}.",
            "Refund it to {card}, please.",
            "My card number: {card}.",
        ),
        "address": (
            "Send the box to {address}.",
            "We have moved to {address}.",
            "My postal address is {address}.",
            "Deliver to {address}, please.",
        ),
        "api_key": (
            "The test key is {api_key}.",
            "Use {api_key} for the sandbox.",
            "I set the token to {api_key}.",
        ),
        "account": (
            "My account is {account}.",
            "The case number is {account}.",
            "Please quote {account} in the reply.",
        ),
    },
    filler=(
        "Sorry for the late answer, the week was full.",
        "The {product} arrived on {day} and works well.",
        "I will be away until the end of {month}.",
        "Could you confirm that nothing else is missing?",
        "The forms are nearly done.",
        "Let us talk about it on {day}.",
        "There is no hurry, next week is fine.",
        "I attach the list from last {month}.",
        "The {team} team has seen the draft already.",
        "It rained all weekend, so I finally did the paperwork.",
        "Please tell the others that the room has changed.",
        "I hope the new office is less noisy.",
        "We still need a decision about the {product}.",
    ),
)

TICKET = Register(
    templates=(
        "Ticket: {product} does not start\nCustomer: {name}\n{1} {2} {0} {3} {0} {4}\n{0}\nStatus: open",
        "Customer {name} ({city}) reports a fault with the {product}. {0} {1} {2} {0} {3} {4} {0}",
        "Priority: low. Reporter: {name}, {employer}. {0} {1} {0} {2} {3} {4} {0} Assigned to {team}.",
        "Summary: refund for the {product}\n{0}\nRequested by {name}. {1} {2} {3} {4} {0} {0}",
        "{team} note. {name} called on {day}. {1} {0} {2} {0} {3} {4} {0} Waiting for the customer.",
        "Escalated to {team} on {day}: {name}, {job}. {0} {0} {1} {2} {3} {4} {0}\nStatus: in progress",
        "Request: change of details\nName: {name}\n{1}\n{2}\n{3}\n{4}\n{0} {0} {0}\nStatus: closed",
        "Reopened. {0} The customer, {name} of {employer}, wrote again. {1} {2} {3} {0} {4} {0}",
        "Return of one {product} by {name}. {1} {0} {2} {3} {0} {4} {0} Closed by {team}.",
        "Identity check for {name}, {city}. {1} {2} {3} {4} {0} {0} {0} Passed on {day}.",
    ),
    clauses={
        "phone": (
            "Call back on {phone}.",
            "Phone: {phone}.",
            "Customer's number is {phone}.",
            "Asked us to ring {phone}.",
        ),
        "email": (
            "Contact: {email}.",
            "Replies go to {email}.",
            "Registered with {email}.",
            "Confirmation sent to {email}.",
        ),
        "ssn": (
            "SSN on file: {ssn}.",
            "Verified by social security number {ssn}.",
            "Customer gave SSN {ssn}.",
        ),
        "card": (
            "Paid by card {card}.",
            "Card on file: {card}.",
            "Refund to card {card}.",
            "Charge of {card} failed.",
        ),
        "address": (
            "Ship to {address}.",
            "Address: {address}.",
            "Pick up the parcel at {address}.",
            "Customer moved to {address}.",
        ),
        "api_key": (
            "API key in use: {api_key}.",
            "Requests with {api_key} are refused.",
            "Key {api_key} to be rotated.",
        ),
        "account": (
            "Account {account}.",
            "Case number: {account}.",
            "Booked under {account}.",
        ),
    },
    filler=(
        "The {product} stops after a few minutes.",
        "Restarting did not help.",
        "A photo of the damage is attached.",
        "The customer prefers to be called on {day}.",
        "A replacement was promised for {month}.",
        "The fault could not be reproduced here.",
        "The warranty ends in {month}.",
        "A second technician has looked at it.",
        "Earlier tickets on the {product} were closed.",
        "Nothing was found in the usual places.",
        "The customer was friendly but tired of waiting.",
        "Passed on to the {team} team.",
        "The box was opened before it came back.",
    ),
)

CHAT = Register(
    templates=(
        "Agent: Hello, whom am I talking to?\n{first}: {name}\n{0}\n{1}\n{2}\n{0}\n{3}\n{4}\nAgent: Thank you.",
        "Agent: Is this {name}?\n{first}: yes\n{1}\n{0}\n{2}\n{0}\n{3}\n{4}\n{0}\nAgent: All done.",
        "{first}: hi, {name} here, about the {product}\n{0}\n{1}\n{0}\n{2}\n{3}\n{4}\n{0}\nAgent: Got it.",
        "Chat with {name}, {day}\n{1}\nAgent: Noted.\n{2}\n{0}\n{3}\n{4}\n{0}\n{0}",
        "[{team}] {name} joined\n{0}\n{1}\n{0}\n{2}\n{0}\n{3}\n{4}\n[{team}] {first} left",
        "Agent: Good morning {name}, what can I do for you?\n{0}\n{1}\n{2}\nAgent: Anything else?\n{3}\n{4}\n{0}",
        "{first}: it is {name} again, from {city}\nAgent: Welcome back!\n{1}\n{2}\n{3}\n{0}\n{4}\n{0}\n{0}",
        "{first}: I need help with a {product}\nAgent: Your full name?\n{first}: {name}\n{1}\n{2}\n{0}\n{3}\n{4}\n{0}",
        "Transcript, {team}, {day}\nAgent: {name}?\n{first}: speaking\n{0}\n{1}\n{2}\n{0}\n{3}\n{4}\n{0}",
    ),
    clauses={
        "phone": (
            "{first}: my phone is {phone}",
            "{first}: call me at {phone}",
            "{first}: {phone} is my number",
        ),
        "email": (
            "{first}: mail me at {email}",
            "{first}: it is {email}, all lower case",
            "{first}: I signed up with {email}",
        ),
        "ssn": (
            "{first}: the social is {ssn}",
            "{first}: SSN {ssn}",
            "{first}: my social security number? {ssn}",
        ),
        "card": (
            "{first}: I paid with {card}",
            "{first}: the card is {card}",
            "{first}: {card} is the card number",
        ),
        "address": (
            "{first}: I live at {address}",
            "{first}: send it to {address}",
            "{first}: new address, {address}",
        ),
        "api_key": (
            "{first}: my key is {api_key}",
            "{first}: I tried {api_key} and it fails",
            "{first}: token {api_key}",
        ),
        "account": (
            "{first}: account {account}",
            "{first}: the letter says {account}",
            "{first}: {account} is my case",
        ),
    },
    filler=(
        "Agent: One moment, please, I am opening your file.",
        "{first}: the {product} still does not work, sadly",
        "Agent: Can you tell me more about the {product}?",
        "{first}: sure, I have the letter right here",
        "Agent: I am looking it up now, this takes a minute.",
        "{first}: I already tried that on {day}, no luck",
        "Agent: Would {day} suit you, or rather later?",
        "{first}: no hurry at all, take your time",
        "Agent: I have to ask the {team} team about this.",
        "{first}: that was some time in {month}, I think",
        "Agent: Thank you for waiting, the system is slow.",
        "{first}: great, that is a lot quicker than last time",
    ),
)

LOG = Register(
    templates=(
        '{date} {time} INFO signup user="{name}" {1} {2}\n{0}\n{date} {time} INFO profile saved {3} {4}\n{0}',
        '{0}\n{date} {time} WARN checkout failed for "{name}" {1} {2} {3} {4}\n{0}\n{0}',
        "[{time}] {service}: session of {name}\n[{time}] {service}: {1} {2} {3}\n[{time}] {service}: {4} end\n{0}\n{0}",
        "{date} {service} DEBUG body: name={name}; {1} {2} {3} {4}\n{0}\n{0}\n{0}",
        "{0}\n{0}\n{time} {service} export row: {name} | {1} {2} {3} {4}\n{time} {service} export done\n{0}",
        '{date} {time} ERROR {service} duplicate record "{name}"\n  {1}\n  {2}\n  {3}\n  {4}\n{0}\n{0}\n{0}',
        "{date} {time} AUDIT {team} viewed {name} ({city}) {1} {2}\n{0}\n{date} {time} AUDIT same: {3} {4}\n{0}\n{0}",
        "{service}[{time}]: update {name} set {1} {2} {3} {4}\n{service}[{time}]: 1 row changed\n{0}\n{0}\n{0}",
        "{0}\n{date} {time} INFO {service} import of {name}, {employer}: {1} {0}\n{date} {time} INFO {2} {3} {4}\n{0}",
    ),
    clauses={
        "phone": ("phone={phone}", 'tel="{phone}"', "contact.phone: {phone}"),
        "email": ("email={email}", 'mail="{email}"', "login: {email}"),
        "ssn": ("ssn={ssn}", 'tax_id="{ssn}"', "person.ssn: {ssn}"),
        "card": ("card={card}", 'pan="{card}"', "payment.card: {card}"),
        "address": ("address={address}", 'ship_to="{address}"', "home: {address}"),
        "api_key": ("key={api_key}", 'token="{api_key}"', "auth: {api_key}"),
        "account": ("account={account}", 'case="{account}"', "ref: {account}"),
    },
    filler=(
        "{date} {time} INFO {service} started",
        "{date} {time} DEBUG {service} cache warm",
        "{date} {time} WARN {service} slow response from {team} host",
        "{date} {time} INFO {service} request accepted",
        "{date} {time} INFO {service} queue empty, sleeping",
        "{date} {time} ERROR {service} connection reset, trying again",
        "{date} {time} DEBUG {service} retry succeeded",
        "{date} {time} INFO {service} backup finished without errors",
        "{date} {time} INFO {service} {product} page rendered",
        "{date} {time} WARN {service} certificate ends in {month}",
    ),
)

REGISTERS: Mapping[str, Register] = {"bio": BIO, "email": EMAIL, "ticket": TICKET, "chat": CHAT, "log": LOG}

JOBS = (
    "accountant", "actor", "archivist", "baker", "biologist", "bookkeeper", "bus driver", "carpenter", "chemist",
    "civil engineer", "clerk", "dentist", "designer", "editor", "electrician", "estate agent", "farmer", "gardener",
    "geologist", "illustrator", "interpreter", "journalist", "lawyer", "librarian", "machinist", "midwife", "musician",
    "nurse", "optician", "painter", "pharmacist", "physicist", "pilot", "plumber", "programmer", "sales manager",
    "surveyor", "teacher", "translator", "veterinarian",
)  # fmt: skip

WORDS: Mapping[str, tuple[str, ...]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    "date": ("2023-04-03", "2023-09-18", "2024-01-08", "2024-03-11", "2024-06-24", "2024-10-07", "2025-02-17"),
    "time": ("06:15:00", "08:30:00", "09:45:00", "11:00:00", "13:15:00", "15:30:00", "17:45:00", "22:00:00"),
    "team": ("billing", "support", "design", "logistics", "research", "facilities", "training", "security"),
    "product": ("printer", "router", "bicycle", "heat pump", "lamp", "tablet", "coffee machine", "sewing machine"),
    "service": ("crm", "gateway", "billing-api", "mailer", "auth", "orders", "indexer", "scheduler"),
    "place": ("harbor", "market square", "old library", "north valley", "station", "museum", "lake", "high street"),
    "weather": ("light rain", "thick fog", "strong wind", "bright sun", "wet snow", "a dry heat", "hail", "thin cloud"),
    "adjective": ("quiet", "narrow", "famous", "modest", "bright", "heavy", "careful", "unexpected", "plain", "early"),
    "thing": ("bridge", "orchard", "letter", "kitchen", "garden", "window", "story", "ferry", "concert", "map"),
    "food": ("barley", "onions", "lentils", "apples", "mushrooms", "fennel", "potatoes", "rice", "pears", "beans"),
    "people": ("children", "neighbors", "students", "visitors", "farmers", "guests", "drivers", "musicians"),
    "verb": ("repair", "describe", "paint", "measure", "open", "follow", "move", "remember", "sell", "visit"),
    "number": ("two", "three", "four", "five", "seven", "nine", "twelve", "twenty", "thirty", "forty"),
}

# Ordinary prose of other kinds than the registers, without a person's data: each document takes sentences of one kind.
PROSE: Mapping[str, tuple[str, ...]] = {
    "weather": (
        "The {day} begins with {weather} around the {place}.",
        "In {month} the {place} usually sees {weather}.",
        "Expect {weather} by noon, then {weather} until evening.",
        "After {number} days of {weather} the roads are dry again.",
        "Over the {place} the night stays {adjective}, with {weather} towards morning.",
        "Boats should stay near the {place} because of {weather}.",
        "Temperatures fall by {number} degrees on {day}.",
        "The outlook for {month} remains {adjective}.",
    ),
    "minutes": (
        "The {team} team met on {day} to discuss the {product}.",
        "It was agreed to {verb} the {thing} before {month}.",
        "{number} members asked for {a_adjective} budget.",
        "The {team} group will report again in {month}.",
        "No one objected to the {adjective} plan.",
        "Action: {team} to {verb} the {product} by {day}.",
        "The chair thanked the {people} for their patience.",
        "The next meeting is at the {place} on {day}.",
    ),
    "product": (
        "This {adjective} {product} fits every {thing}.",
        "It takes {number} minutes to {verb} and lasts for years.",
        "The {product} comes with {number} parts and {a_adjective} manual.",
        "Our {people} tested it in {weather}.",
        "Buy the {product} before {month} and get a second one at half the price.",
        "Its {adjective} surface is easy to clean.",
        "Made near the {place} by {a_adjective} company of {number}.",
        "Not suitable for use in {weather}.",
    ),
    "story": (
        "The {adjective} {thing} stood near the {place}, and the {people} loved it.",
        "One {day} in {month} there was {weather}, and nobody went out.",
        '"We must {verb} the {thing}," said the old woman.',
        "So the {people} walked to the {place} to {verb} it.",
        "For {number} years no one had seen such {a_adjective} {thing}.",
        "At last the {weather} ended and the {people} sang.",
        "He kept the {adjective} {thing} in a box under the stairs.",
        "She laughed, because the {thing} was only {adjective} after all.",
    ),
    "recipe": (
        "Cut the {food} into {number} pieces and wash the {food}.",
        "Boil the {food} for {number} minutes in salted water.",
        "Add the {food}, stir, and wait until everything is soft.",
        "In {month} look for fresh {food} on the market.",
        "Serve with {food} and {a_adjective} sauce for {number} guests.",
        "Fry the {food} gently; too much heat makes it bitter.",
        "Keep what is left of the {food} until {day}.",
    ),
    "travel": (
        "From the {place} it is {number} minutes on foot to the {place}.",
        "The {thing} by the {place} is worth {a_adjective} afternoon.",
        "Many {people} come in {month} in spite of {weather}.",
        "On {day} the {place} is closed; go and {verb} the {thing} instead.",
        "A {day} market sells {food} and {food}.",
        "The ferry takes {number} passengers and leaves from the {place}.",
        "Bring a coat, since {weather} is common.",
    ),
    "review": (
        "I bought this {product} in {month} and would do so again.",
        "The {product} is {adjective} but hard to {verb}.",
        "After {number} weeks it still looks new.",
        "My {people} found it {adjective}, I did not.",
        "The {team} staff answered within {number} days.",
        "Do not use it in {weather}, as I did.",
        "{number} stars out of five from the {people} next door.",
    ),
    "news": (
        "The {people} of the {place} voted on {day} to {verb} the {thing}.",
        "{number} {people} were stopped by {weather} last {month}.",
        "A spokesman called the decision {adjective}.",
        "Work on the {thing} near the {place} will take {number} months.",
        "The council wants to {verb} the {place} before {month}.",
        "Prices for {food} rose while those for {food} fell.",
        "The museum shows {a_adjective} {thing} from the {place}.",
    ),
}
