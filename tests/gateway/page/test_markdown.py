"""Markdown as the playground shows it, in a real browser: whole, cut anywhere, and with a seam anywhere."""

import json
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.browser import WHY_NOT, Page, open_page
from tests.conftest import MakeGateway

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

CODE: Final = (
    '<figure class="code"><figcaption><span>{0}</span>'
    '<button class="quiet" type="button" data-copy="code">Copy</button></figcaption>'
    '<pre tabindex="0"><code>{1}</code></pre></figure>'
)
SAMPLES: Final = {
    "One line\nand its next.\n\nAnother.": "<p>One line\nand its next.</p><p>Another.</p>",
    "# A title #\nText": "<h3>A title</h3><p>Text</p>",
    "*em* **strong** _em_ __too__ ~~del~~ `code`": (
        "<p><em>em</em> <strong>strong</strong> <em>em</em> <strong>too</strong> <del>del</del> <code>code</code></p>"
    ),
    "**bold and *both* at once**": "<p><strong>bold and <em>both</em> at once</strong></p>",
    "5 * 3 * 2, snake_case_name, 2 ** 3, a~b": "<p>5 * 3 * 2, snake_case_name, 2 ** 3, a~b</p>",
    "never **closed": "<p>never **closed</p>",
    r"\*plain\* \_plain\_": "<p>*plain* _plain_</p>",
    "``a ` b`` and `**c**`": "<p><code>a ` b</code> and <code>**c**</code></p>",
    "hard  \nbreak\\\nhere": "<p>hard<br>break<br>here</p>",
    "<b>no</b> & <script>no</script>": "<p>&lt;b&gt;no&lt;/b&gt; &amp; &lt;script&gt;no&lt;/script&gt;</p>",
    "[mill](https://x.org) and ![a wheel](w.png)": (
        '<p>mill<span class="url"> (https://x.org)</span> and a wheel<span class="url"> (w.png)</span></p>'
    ),
    "- a\n- b\n  - c\n    - d\n- e": "<ul><li>a</li><li>b<ul><li>c<ul><li>d</li></ul></li></ul></li><li>e</li></ul>",
    "3. three\n4. four\n   - inner\n5. five": (
        '<ol start="3"><li>three</li><li>four<ul><li>inner</li></ul></li><li>five</li></ol>'
    ),
    "- a\n\n  more of a\n- b\n\nafter": "<ul><li>a<p>more of a</p></li><li>b</li></ul><p>after</p>",
    "- a\n  goes on\n* b": "<ul><li>a\ngoes on</li><li>b</li></ul>",
    "```python\nif a < b:\n\n    # **no**\n```\nafter": CODE.format("python", "if a &lt; b:\n\n    # **no**")
    + "<p>after</p>",
    "~~~\n```\n~~~": CODE.format("text", "```"),
    "1. so:\n   ```sh\n   ls\n   ```": "<ol><li>so:" + CODE.format("sh", "ls") + "</li></ol>",
    "```\nnever closed": CODE.format("text", "never closed"),
    "> one\n> two\n\nthree": "<blockquote><p>one\ntwo</p></blockquote><p>three</p>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n\nc": (
        '<div class="table"><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td><strong>2</strong></td></tr></table>'
        "</div><p>c</p>"
    ),
    "| no table": "<p>| no table</p>",
    "水 🐟 naïve\u2028line": "<p>水 🐟 naïve\u2028line</p>",
}

CHECK: Final = """
  (async (samples) => {
    const { Markdown } = await import('/page/markdown.js');
    const whole = (source, seams = []) => {
      const box = document.createElement('div');
      new Markdown(box).show(source, seams, true);
      return box;
    };
    const html = (box) => { box.normalize(); return box.innerHTML; };
    return samples.map((source) => {
      const expected = html(whole(source));
      const wrong = [];
      for (const step of [1, 2, 7]) {
        const box = document.createElement('div'), closed = [];
        const markdown = new Markdown(box, (text) => closed.push(text));
        for (let end = step; end < source.length; end += step) markdown.show(source.slice(0, end), [], false);
        markdown.show(source, [], true);
        if (html(box) !== expected) wrong.push(`in steps of ${step}: ${html(box)}`);
      }
      for (let at = 0; at < source.length; at += 1) {
        const box = document.createElement('div');
        const markdown = new Markdown(box);
        const seam = {at, target: 'sim/mill', way: 'exact', attempt: 2};
        for (let end = 1; end < source.length; end += 3) {
          markdown.show(source.slice(0, end), end < at ? [] : [seam], false);
        }
        markdown.show(source, [seam], true);
        const marks = [...box.querySelectorAll('.seam')];
        for (const mark of marks) mark.remove();
        if (html(box) !== expected || marks.length > 1) wrong.push(`seam at ${at}: ${marks.length} ${html(box)}`);
        if (at === 0 && marks.length !== 1) wrong.push('no seam');
      }
      return [expected, wrong];
    });
  })(%s)
"""


@pytest.fixture
async def page(chromium: str, make_gateway: MakeGateway) -> AsyncIterator[Page]:
    """The playground."""
    async with open_page(chromium) as opened:
        await opened.open((await make_gateway("openai")).url)
        yield opened


async def test_what_is_shown_in_the_end_does_not_depend_on_how_it_came(page: Page) -> None:
    """Cut into pieces or not, joined anywhere or not: the elements are the same, and none is markup of the text."""
    found = await page.evaluate(CHECK % json.dumps(list(SAMPLES)))
    assert [expected for expected, _ in found] == list(SAMPLES.values())
    assert [wrong for _, wrong in found] == [[] for _ in SAMPLES]
    assert page.complaints == []


async def test_what_is_closed_is_not_touched_again_and_what_is_open_only_grows(page: Page) -> None:
    """A selection survives while the answer grows, and a long answer costs as little per token as a short one."""
    kept = """
      (async () => {
        const { Markdown } = await import('/page/markdown.js');
        const box = document.createElement('div');
        const markdown = new Markdown(box);
        markdown.show('One.\\n\\nTwo', [], false);
        const first = box.firstChild, open = box.lastChild.firstChild;
        markdown.show('One.\\n\\nTwo and **three** and', [], false);
        markdown.show('One.\\n\\nTwo and **three** and four', [], true);
        return [box.firstChild === first, box.children[1].firstChild === open, box.textContent];
      })()
    """
    assert await page.evaluate(kept) == [True, True, "One.Two and three and four"]
