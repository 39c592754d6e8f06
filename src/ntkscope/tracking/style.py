"""How the page looks: light, dark, narrow, on paper."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root{--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3568e;--c4:#b77f00;--c5:#2f8fc4;
--ink:#1d1d1f;--paper:#fff;--soft:#f4f5f7;--line:#d9dce1;--warn:#fff4dd}
@media (prefers-color-scheme:dark){:root{--c0:#4fb0ea;--c1:#ff8a3c;--c2:#2fd0a0;--c3:#e59cc6;--c4:#f0b93a;
--c5:#8fd0f5;--ink:#e8e9eb;--paper:#15171a;--soft:#1e2126;--line:#3a3f47;--warn:#3a2f14}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1500px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;margin:.4em 0}h2{font-size:1.25rem;margin:0 0 .5em}
h3{font-size:1rem;margin:0 0 .4em}
.plots{display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr))}
figure{margin:0;padding:12px;background:var(--soft);border:1px solid var(--line);border-radius:8px;
break-inside:avoid;overflow-wrap:anywhere}
figure svg{display:block;width:100%;height:auto;max-height:460px;font-family:system-ui,sans-serif}
figcaption{font-size:.9rem;margin-top:.4em}
[id*=point-] use:hover{stroke:currentColor;stroke-width:4px}
[id*=bar-] path:hover{fill-opacity:.7}
[id*=-cells] path:hover{stroke:#fff;stroke-width:1.5px}
section{margin:24px 0}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;padding:4px 14px 4px 0;
border-bottom:1px solid var(--line);vertical-align:top}
td:first-child{min-width:8.5em}.prose td:last-child{min-width:16em}
.problems{background:var(--warn);border:1px solid var(--line);border-radius:8px;padding:12px}
.problems ul{margin:0;padding-left:1.2em}
@media print{:root{--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3568e;--c4:#b77f00;--c5:#2f8fc4;
--ink:#000;--paper:#fff;--soft:#fff;--line:#bbb;--warn:#fff}
body{font-size:10pt}main{padding:0}section{margin:12px 0}h2{break-after:avoid}
.plots{grid-template-columns:1fr 1fr;gap:8px}figure{padding:8px}figure svg{max-height:4.7cm}
figcaption{font-size:8pt}h2{font-size:13pt}h3{font-size:10pt}
table{font-size:8pt}th,td{padding:2px 8px 2px 0}tr{break-inside:avoid}.wide{overflow:visible}}
""".strip()
