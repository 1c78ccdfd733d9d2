"""
Figures of results, for who looks rather than reads; matplotlib is loaded when one is drawn.

A class with ``plot(ax=None)`` shows itself in a notebook by `picture_html`.
"""

import base64
import io
from html import escape


def new_axes(n=1, *, width=5.0, height=4.0):
    """
    Return ``n`` axes side by side in a new figure of pyplot, one as itself.

    Raises
    ------
    ImportError
        If matplotlib is not installed: which extra has it.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "plot: needs matplotlib, which is not installed: pip install 'astro-narrowband[report]'"
        ) from None
    return plt.figure(figsize=(n * width, height), layout="constrained").subplots(1, n)


def picture_html(text, draw, n=1):
    """
    Return what a notebook shows of a result: a line of text, and its picture.

    Parameters
    ----------
    text : str
        Escaped here.
    draw : callable
        ``draw(ax)`` draws into one or ``n`` axes, of a figure that pyplot does not know.
    n : int, optional

    Returns
    -------
    str
        The text alone where matplotlib is not installed.
    """
    line = f"<p>{escape(text)}</p>"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return line
    figure, out = Figure(figsize=(n * 4.2, 3.4), layout="constrained"), io.BytesIO()
    draw(figure.subplots(1, n))
    figure.savefig(out, format="png", dpi=80)
    data = base64.b64encode(out.getvalue()).decode()
    return f'{line}<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
