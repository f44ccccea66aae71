"""The words that templated prompts are made of, and everyday prompts kept for evaluation alone."""


def _items(text: str) -> list[str]:
    """Split at bars and line ends; a backslash-n inside an item is a line end of its own."""
    return text.strip().replace("\n", "|").replace("\\n", "\n").split("|")


TOPICS = _items("""
the water cycle|photosynthesis|black holes|the French Revolution|the Roman Empire|machine learning
neural networks|climate change|renewable energy|electric cars|the human heart|sleep|healthy eating
meditation|yoga|running a marathon|learning a new language|playing the guitar
painting with watercolours|photography|gardening|baking bread|coffee|tea|chocolate
the Olympic Games|football|basketball|chess|video games|science fiction novels|poetry|Shakespeare
jazz music|classical music|movies|theatre|the Renaissance|ancient Egypt|the Industrial Revolution
World War II|the Cold War|democracy|human rights|globalization|inflation|the stock market
personal budgeting|saving for retirement|taxes|starting a small business|marketing
customer service|remote work|time management|job interviews|leadership|teamwork|public speaking
writing a resume|project management|email etiquette|negotiation|stress|anxiety|friendship|family
parenting|pets|dogs|cats|birds|dolphins|whales|bees|butterflies|rainforests|deserts|oceans
volcanoes|earthquakes|hurricanes|the solar system|the Moon|Mars|space exploration|gravity
electricity|magnetism|quantum mechanics|relativity|atoms|chemical reactions|the periodic table|DNA
evolution|vaccines|antibiotics|the immune system|the brain|memory|vitamins|exercise|mental health
recycling|plastic pollution|water conservation|solar panels|wind turbines|batteries|computers
the internet|smartphones|social media|online privacy|passwords|artificial intelligence|robots
blockchain|cloud computing|databases|operating systems|open source software|version control
unit testing|debugging|algorithms|sorting algorithms|binary search|recursion|linked lists
hash tables|object-oriented programming|functional programming|APIs|web design|HTML|CSS
regular expressions|spreadsheets|statistics|probability|algebra|geometry|calculus|fractions
prime numbers|percentages|the Pythagorean theorem|logic puzzles|philosophy|ethics|happiness
creativity|critical thinking|mythology|Greek gods|dragons|fairy tales|ghost stories
detective stories|travel|Paris|Japan|Italy|Brazil|Egypt|India|Canada|Australia|New York|London
mountains|camping|hiking|cycling|swimming|sailing|airplanes|trains|bridges|architecture|museums
fashion|furniture|cooking pasta|vegetarian food|pizza|soup|salads|breakfast|birthday parties
weddings|holidays|Christmas|New Year's resolutions|volunteering|charity|education|homework
libraries|books|newspapers|podcasts|dreams|colours|weather|seasons|rivers|forests|agriculture
fishing|wine|spices|money|insurance|housing|public transport|law
""")

TASKS = _items("""
Explain {topic} in simple terms.|What is {topic}?|Can you tell me about {topic}?
Explain {topic} to a {age}-year-old.|Write a short paragraph about {topic}.
Write {n} sentences about {topic}.|List {n} facts about {topic}.
List {n} reasons why {topic} matters.|Give me {n} tips about {topic}.
What are the main benefits of {topic}?|What are the pros and cons of {topic}?
Describe the history of {topic}.|How does {topic} affect our daily life?
Compare {topic} and {other}.|What is the difference between {topic} and {other}?
How are {topic} and {other} related?|Write a poem about {topic}.|Write a haiku about {topic}.
Write a short story about {topic} and {other}.|Write a dialogue between two friends about {topic}.
Write a song about {topic}.|Write a limerick about {topic}.
Write an email to my boss about {topic}.|Write a polite letter to a neighbour about {topic}.
Write a tweet about {topic}.|Write a blog post introduction about {topic}.
Write a product description for {topic}.|Write a speech about {topic}.
Write a news headline about {topic}.|Come up with {n} titles for an article on {topic}.
Suggest {n} questions to ask an expert on {topic}.|Write a quiz with {n} questions about {topic}.
Make a lesson plan about {topic}.|Make a step-by-step guide to {topic}.
How do I get started with {topic}?|What should a beginner know about {topic}?
What are common mistakes in {topic}?|What are common myths about {topic}?
Why do people like {topic}?|Who are famous people known for {topic}?
What books would you recommend about {topic}?
Summarize the most important things about {topic} in {n} bullet points.
Define {topic} in one sentence.|Write a {style} description of {topic}.
Talk about {topic} in a {style} tone.|Give me an example of {topic}.
I am worried about {topic}. What should I do?
My friend does not like {topic}. How can I convince them?|Hi! Can we talk about {topic}?
What do you think about {topic}?|Tell me a joke about {topic}.
Tell me something surprising about {topic}.|Imagine the world without {topic}. What would change?
Translate to {language}: "I would like to learn about {topic}."
How do you say "{topic}" in {language}?
Return a JSON object with the keys "title", "summary" and "tags" about {topic}.
Give me a JSON list of {n} words related to {topic}.
Make a markdown table comparing {topic} and {other}.|Write a {code} program about {topic}.
Write a {code} function that {job}.|Show me how to {job} in {code}.
Explain how to {job} in {code}, step by step.
Write a {code} class named {name} with a method that can {job}.
Write an SQL query that selects {n} rows about {topic}.|Write an HTML page about {topic}.
What is {a} plus {b}?|What is {a} times {b}?|What is {a} minus {b}?|What is {a} divided by {n}?
If I buy {n} apples at {a} cents each, how much do I pay?|What is {n} percent of {a}?
A train travels {a} miles in {n} hours. What is its average speed?|Solve for x: {n}x + {a} = {b}.
{name} has {a} coins and gives {n} to a friend. How many coins are left?
Convert {a} minutes to hours and minutes.
Rewrite this sentence in a {style} way: "{topic} is something that everybody should know about."
Correct the grammar: "Yesterday I goes to learn about {topic} and it were fun."
Is this sentence positive or negative? "I enjoyed reading about {topic}, but {other} was boring."
Continue the story: {name} never believed in {topic} until one rainy evening
Write a character description of {name}, who loves {topic}.
Plan a day trip for someone who likes {topic}.
Pretend you are an expert on {topic}. Introduce yourself.
Give me three synonyms and a sentence for "{topic}".
Should schools teach {topic}? Give both sides.|What will {topic} look like in {n}0 years?
""")

OPENINGS = _items(r"""
The history of {topic} began|{topic} is|The most important thing about {topic} is
Once upon a time, {name}|In this article, we will look at {topic}.|There are {n} main types of
The difference between {topic} and {other} is|Q: What is {topic}?\nA:|# {topic}\n\n
Abstract: This paper studies {topic}|Dear {name},\n\nThank you for|The capital of
{name} walked into the room and|Scientists have discovered that {topic}
The best way to learn about|def {func}(|import numpy as np\n\ndef {func}(|function {func}(
<html>\n<head>\n<title>{topic}</title>|Ingredients:\n- {n} cups of|Step 1:
1. {topic}\n2. {other}\n3.|{{"title": "{topic}", "summary": "|SELECT * FROM|Chapter {n}\n\n{topic}
In {a}0, |"{topic}?" asked {name}.|Question: If {name} has {n} apples and buys {a} more
""")

SLOTS = {
    "n": _items("2|3|4|5|6|7|8|10"),
    "a": [str(i) for i in range(11, 100)],
    "b": [str(i) for i in range(100, 300)],
    "age": _items("5|8|10|12"),
    "style": _items("formal|casual|funny|poetic|serious|friendly|dramatic|short and clear"),
    "language": _items("French|Spanish|German|Italian|Portuguese|Dutch|Japanese"),
    "code": _items("Python|Python|Python|JavaScript|Java|C++|C|Go|Rust|Bash"),
    "name": _items("""
Anna|Ben|Carla|David|Emma|Felix|Grace|Hiro|Ines|Jack|Lucy|Maria|Noah|Olga|Sam
"""),
    "func": _items("""
add|mean|factorial|is_prime|reverse_string|count_words|merge|find_max|parse|main
"""),
    "job": _items("""
reverse a string|sort a list of numbers|check whether a number is prime|compute a factorial
read a file line by line|count the words in a text|find the largest number in a list
remove duplicates from a list|compute Fibonacci numbers|convert Celsius to Fahrenheit
check whether a word is a palindrome|merge two dictionaries|download a web page|parse JSON
print the multiplication table|simulate rolling dice|connect to a database|write a CSV file
find the average of a list|calculate the area of a circle|generate a random password
implement binary search|implement a stack|flatten a nested list|count vowels in a string
"""),
}

SYSTEMS = _items("""
You are a helpful assistant.|You are a helpful AI assistant.|Answer briefly.
You are a patient teacher.|You are a senior software engineer. Answer with code where it helps.
You are a friendly customer support agent.|You answer in one or two sentences.
You are a careful mathematician. Think step by step.|You are a creative writer.
You are an expert in history and geography.|You are a travel guide.|You are a doctor.
Be concise and factual.|You are a translator.|You only answer with valid JSON.
You are a cook who loves details.
""")

FOLLOW_UPS = _items("""
Can you give an example?|Make it shorter.|Explain that in simpler words.|Tell me more.|Why?
Are you sure?|Now write it as a list.|What else should I know?|Rewrite it in a more formal tone.
How does that work?|Can you summarize that in one sentence?|Thank you! What about the opposite?
Translate your answer to French.|Give me three more.|Continue.|What are the downsides?
Write it as a poem.|How would you explain it to a child?
""")

EVERYDAY = _items("""
What is the capital of France?|Who wrote Romeo and Juliet?|How do I boil an egg?
Give me a recipe for pancakes.|Write a Python function that checks if a string is a palindrome.
What is 17 + 25?|Why is the sky blue?|Tell me a bedtime story about a fox and an owl.
How many continents are there?|What does HTTP stand for?|Write an email asking for a day off.
Explain the theory of relativity.|What should I pack for a beach holiday?
Give me five ideas for a birthday present for my mother.|How can I sleep better?
Name three programming languages.|What is the difference between a virus and a bacterium?
Write a haiku about autumn.|How do airplanes fly?|Summarize the plot of Cinderella.
What is machine learning?|Translate "good morning" to Spanish.
Write a short cover letter for a barista job.|How do I center a div in CSS?
What are prime numbers?|I feel sad today.|Plan a weekend in Rome.
What is the boiling point of water?|Who was Albert Einstein?|List the planets of the solar system.
Explain recursion with an example.|How do I tie a tie?
""")
