"""transformers' attention and mask functions named "kvmesh"."""

import atexit
import functools
import threading

import torch
from transformers import masking_utils

from .. import _kvmesh
from ..errors import InvalidArgument, Unsupported
from ..torch._tracing import mask_mod_of

# (cache, layer), which a layer's KvmeshCache.update leaves on this thread for the attention
# function: transformers calls it next and does not give it the cache.
_updated = threading.local()


def forget():
    """Removes what update left on this thread, and returns it; None if there is nothing. A forward
    that failed half way leaves it."""
    layer, _updated.layer = getattr(_updated, "layer", None), None
    return layer


def leave(cache, layer):
    if forget() is not None:
        raise Unsupported("the layer before has not called the attention \"kvmesh\": load the model "
                          "with attn_implementation=\"kvmesh\". A model that does not call "
                          "transformers' AttentionInterface cannot use a KvmeshCache")
    _updated.layer = (cache, layer)


def _take():
    layer = forget()
    if layer is None:
        raise InvalidArgument("the attention \"kvmesh\" needs past_key_values=KvmeshCache(...), and "
                              "layers that each have keys and values of their own")
    return layer


class Mask:
    """The attention_mask that a model's layers are given.

    mod: which keys a query sees, over positions that count padding. padding: bool [batch, tokens so
    far], False where there is padding; None: nowhere.
    """

    def __init__(self, function, padding):
        self.mod, self.padding = mask_mod_of(function), padding
        self.text = self.mod.text

    def of_window(self, window):
        """Returns the mask over positions without padding, if it is causal, with or without the window;
        else None."""
        for each in (None, window):
            text, mask = _window(each)
            if self.text == text:
                return mask
        return None

    def is_window(self, tokens):
        """Returns whether it is causal with a window of `tokens`."""
        return self.text == _window(tokens)[0]


@functools.lru_cache(maxsize=None)
def _window(tokens):
    """Returns transformers' causal mask as text, and kvmesh's."""
    if tokens is None:
        return mask_mod_of(masking_utils.causal_mask_function).text, _kvmesh.causal()
    function = masking_utils.sliding_window_causal_mask_function(tokens)
    return mask_mod_of(function).text, _kvmesh.sliding_window(tokens)


atexit.register(_window.cache_clear)  # before the extension module ends


def make_mask(*, mask_function, attention_mask=None, **_):
    """Serves as transformers' mask function, but makes no tensor."""
    return Mask(mask_function, attention_mask)


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None,
              sliding_window=None, softcap=None, s_aux=None, position_bias=None, **_):
    """transformers' attention function: appends key and value to the cache whose update was called,
    and attends over it. query [batch, heads, tokens, k_dim], key and value the new tokens' alone.
    Returns ([batch, tokens, heads, v_dim], None)."""
    cache, layer = _take()
    if not isinstance(attention_mask, Mask):
        raise Unsupported("the attention \"kvmesh\" takes masks that transformers makes from a mask "
                          f"of two dimensions, not {type(attention_mask).__name__}")
    if dropout or position_bias is not None:
        raise Unsupported("the attention \"kvmesh\" has no dropout (call model.eval()) and no "
                          "position bias")
    cache._check_window(layer, attention_mask)
    with torch.no_grad():
        step = cache._step(layer, query, key, value, attention_mask.padding)
        plan = step.plan(attention_mask, sliding_window, softcap, scaling)
        return step.run(plan, layer, query, key, value, s_aux), None
