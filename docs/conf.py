"Sphinx's settings for the site, and the links of symbols. Nothing on a page is loaded from elsewhere; no page holds a formula, so there is no MathJax."
import re, tomllib
from pathlib import Path
from docutils import nodes
from pygments.formatters import HtmlFormatter
from sphinx.addnodes import pending_xref
from sphinx.highlighting import PygmentsBridge
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform

root = Path(__file__).resolve().parent.parent
about = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
project = html_title = about['name']
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.viewcode']
nb_execution_mode,nb_merge_streams = 'off',True
myst_heading_anchors,myst_enable_extensions = 4,['fieldlist']
html_domain_indices = False
add_module_names = False
viewcode_follow_imported_members = False
html_theme,html_css_files = 'sphinx_book_theme',['site.css']
html_static_path,html_extra_path = ['site.css'],[str(root/'nbs/llms.txt')]
html_context,html_favicon = dict(default_mode='auto'),'icon.svg'
html_theme_options = dict(navbar_persistent=[], max_navbar_depth=1, show_toc_level=2, use_fullscreen_button=False, footer_content_items='')
html_sidebars = {'**': ['navbar-logo.html', 'search-button-field.html', 'sbt-sidebar-nav.html']}
html_show_search_summary = False                                       # it would begin with the words of the theme's menu

class WrappedLines(HtmlFormatter):
    "Code with a span around each line, which knows its indent: site.css wraps a long one, and sets what goes on below further to the right"
    def wrap(self, source):
        def one(line):
            indent = len(text := re.sub('<[^>]+>', '', line)) - len(text.lstrip(' '))
            return f'<span class="line" style="--indent: {indent}ch">{line.removesuffix(chr(10))}</span>\n'
        return super().wrap((code, one(line) if code else line) for code,line in source)

class SymbolLinks(SphinxTransform):
    "Names in backticks, and calls of them, link to the reference"
    default_priority = 500
    def apply(self):
        for o in list(self.document.findall(nodes.literal)):
            m,up = re.fullmatch(r'([\w.]+)(\(.*\))?', o.astext(), re.S),o.parent
            while isinstance(up, nodes.inline): up = up.parent
            if not m or m[1] not in self.app.symbols or isinstance(up, (nodes.reference, nodes.title, pending_xref)): continue
            o.replace_self(pending_xref('', o.deepcopy(), refdomain='py', reftype='obj', reftarget=self.app.symbols[m[1]], refdoc=self.env.docname, refwarn=True))

def symbols(src):
    "Of the reference pages under `src`: `{name: full name}`; a module goes by its full name"
    res = {}
    for f in sorted(Path(src).glob('reference/*.md')):
        mod = f'{project}.{f.stem}'
        res[mod] = mod
        for o in re.findall(r'^```\{py:(?:function|class|method)\} ([\w.]+)', f.read_text(encoding='utf-8'), re.M): res[o] = res[f'{mod}.{o}'] = f'{mod}.{o}'
    return res

def source(app, mod):
    "Source of a module, without importing it"
    code = (root/f"{mod.replace('.', '/')}.py").read_text(encoding='utf-8')
    a = ModuleAnalyzer.for_string(code, mod)
    a.find_tags()
    return code,a.tags

def title(app, page, template, context, doctree):
    "In the browser's title of the first page, what the project is follows the name"
    if page == 'index': context['docstitle'] = about['description'].partition(':')[0]

def setup(app):
    PygmentsBridge.html_formatter = WrappedLines
    app.symbols = symbols(app.srcdir)
    app.add_transform(SymbolLinks)
    app.connect('viewcode-find-source', source)
    app.connect('html-page-context', title)
