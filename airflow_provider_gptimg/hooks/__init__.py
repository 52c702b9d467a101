# SPDX-License-Identifier: Apache-2.0
"""The hook and the connection it speaks over."""
