"""Common English words, for the text-only skills whose loss would show forgetting.

None names an object, a colour or a place of Playroom, so that a skill's score does not follow what
pictures teach.
"""

from __future__ import annotations

_TEXT = """
river mountain forest ocean desert island valley meadow stream waterfall lake pond beach cliff
cave volcano glacier rain snow storm thunder lightning cloud wind breeze sunshine rainbow moon
planet sky earth sand stone rock pebble mud dust soil grass leaf branch root trunk bark flower
rose tulip daisy lily moss fern oak pine maple willow bamboo seed bush thorn wave tide shore coast
hill plain jungle swamp frost ice fog mist dawn dusk night season spring summer autumn winter
flame smoke ash spark shadow horizon apple banana cherry grape lemon melon peach pear plum berry
mango olive tomato potato carrot onion garlic pepper cabbage lettuce spinach pumpkin bean pea corn
rice wheat bread toast cake cookie pie muffin pancake waffle honey sugar salt butter cheese milk
cream yogurt egg bacon ham sausage chicken beef pork soup stew salad sandwich pizza pasta noodle
sauce vinegar mustard chocolate candy coffee tea juice water wine beer walnut almond peanut
mushroom biscuit dinner lunch breakfast supper dog cat horse cow sheep goat pig rabbit mouse rat
squirrel fox wolf bear lion tiger leopard elephant giraffe zebra monkey gorilla kangaroo koala
panda camel deer moose otter beaver badger hedgehog bat whale dolphin shark seal penguin eagle
hawk owl crow robin sparrow pigeon swan goose duck turkey parrot peacock snake lizard turtle frog
toad salmon trout tuna crab lobster shrimp snail spider ant bee wasp butterfly moth beetle worm
dragon puppy kitten lamb calf house home cottage castle palace tower temple church school college
library museum theatre cinema hospital hotel market shop bakery bank office factory farm barn
stable garage garden park street road bridge tunnel harbour airport station village town city
country kitchen bedroom bathroom cellar attic balcony hallway stairs roof wall floor ceiling door
window gate fence corner field stadium prison border hammer nail screw saw drill ladder rope chain
wire bucket broom brush shovel rake axe knife fork spoon plate bowl cup glass bottle jar kettle
oven stove lamp candle lantern torch clock watch mirror table chair bench desk shelf cupboard
drawer bed blanket pillow carpet curtain basket box bag suitcase wallet purse key lock coin ticket
letter envelope stamp pencil pen paper book notebook magazine newspaper map compass camera
telephone radio computer keyboard screen piano guitar violin drum flute trumpet bell ball kite
doll puzzle card needle thread button zipper shirt trousers skirt dress coat jacket sweater scarf
glove hat shoe boot sock belt necklace umbrella engine wheel bicycle car truck bus train plane
rocket boat ship canoe anchor sail baby child boy girl woman man friend neighbour mother father
sister brother uncle aunt cousin teacher doctor nurse farmer baker painter singer dancer writer
soldier sailor pilot driver king queen prince princess judge lawyer student artist head face eye
ear nose mouth tooth tongue neck shoulder arm elbow hand finger thumb chest heart stomach back leg
knee foot toe bone skin hair idea thought dream hope fear joy anger love trust doubt truth secret
promise question answer reason choice chance change habit memory story poem song music dance game
sport race prize victory defeat peace war law rule power freedom justice honour pride shame luck
fate time hour minute second morning evening week month year century past future language word
sentence number colour shape size place order group pair half whole part price value gift debt
trade plan goal task problem method result cause effect science history nature culture health
sleep work rest travel journey adventure danger safety silence noise voice sound light darkness
happy sad angry calm brave shy proud kind cruel gentle honest clever wise foolish lazy busy quiet
loud fast slow quick early late young old new fresh ancient modern big little tall short long wide
narrow thick thin deep shallow heavy hot cold warm cool wet dry clean dirty bright dark soft hard
smooth rough sharp blunt sweet sour bitter salty rich poor cheap strong weak empty full open
closed simple complex easy difficult strange common rare famous public private local foreign wild
tame round flat straight curved silver golden black white grey brown violet walk run jump climb
swim fly crawl throw catch carry push pull lift drop build break repair paint draw write read
speak listen look find lose hide seek give take bring send buy sell cook bake eat drink taste
smell touch feel think know learn teach forget remember begin finish close start stop wait hurry
follow lead help hurt save spend grow shrink laugh cry smile shout whisper sing play win
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
